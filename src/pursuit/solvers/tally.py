"""Counting what is chosen, for whoever waits."""

from __future__ import annotations

from pursuit.solvers.rows import Advance


class Tally:
    """Tells `advance` how many more atoms are chosen; a count that goes down again is not told."""

    def __init__(self, advance: Advance | None) -> None:
        self.advance, self.before, self.told = advance, 0, 0

    def __call__(self, count: int) -> None:
        """`count` atoms are chosen in this pass."""
        now = self.before + count
        if self.advance is not None and now > self.told:
            self.advance(now - self.told)
            self.told = now

    def close(self, count: int) -> None:
        """A pass ended with `count` atoms."""
        self(count)
        self.before += count
