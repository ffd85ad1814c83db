"""When it is time again to write down what is only there to go on from after a kill."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PAUSE_SECONDS = 60.0
SAVING_SHARE = 20  # at most once in this many times the seconds that writing takes


class Pace:
    """Due every `pause_seconds`, and less often where writing takes long.

    Args:
        pause_seconds: at least so long between two writings; 60 if not given.
    """

    def __init__(self, pause_seconds: float | None = None) -> None:
        self.pause_seconds = PAUSE_SECONDS if pause_seconds is None else pause_seconds
        self._saved_at, self._took = time.monotonic(), 0.0

    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self._saved_at >= max(self.pause_seconds, SAVING_SHARE * self._took)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Around the writing, whose time is taken."""
        begun = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self._took = self._saved_at - begun
