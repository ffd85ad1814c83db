"""Work done in this process, one piece after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pursuit.progress import Advance
    from pursuit.solvers.rows import RowMatrix

Item = TypeVar("Item")
Result = TypeVar("Result")


class LocalEngine:
    """This process; see `pursuit.engine.Engine`."""

    workers: int = 1
    folder: Path | None = None

    def map(
        self, function: Callable[..., Result], items: Iterable[Item], advance: Advance | None = None
    ) -> Iterator[Result]:
        """Like the builtin `map`, one item when it is asked for."""
        for item in items:
            yield function(item) if advance is None else function(item, advance)

    def spread(self, matrix: RowMatrix) -> RowMatrix:
        """The matrix itself."""
        return matrix

    def close(self) -> None:
        """There is nothing to stop."""
