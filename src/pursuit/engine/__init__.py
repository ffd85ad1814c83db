"""Where work runs: in this process, or on the workers of a Ray cluster. An engine does not know what the work is.

The same pieces of work are done in the same way wherever they run, and what they give is put together in the same
order: results are the same bits.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from pursuit.engine.local import LocalEngine
from pursuit.errors import SettingsError

if TYPE_CHECKING:
    from pursuit.progress import Advance
    from pursuit.solvers.rows import RowMatrix

ENGINES = ("local", "ray")
LOCAL = LocalEngine()

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """What selectors and stages ask of it.

    Attributes:
        workers: how many pieces of work run at once.
        folder: where temporary files must lie that workers read; the system's own place where None.
    """

    workers: int
    folder: Path | None

    def map(
        self, function: Callable[..., Result], items: Iterable[Item], advance: Advance | None = None
    ) -> Iterator[Result]:
        """function(item) of every item, in the order of the items.

        Functions and items must be such as can be sent: a module's function or a `functools.partial` of one.

        Args:
            advance: told of progress while it happens. The function is then called as function(item, advance).

        Raises:
            The error that the function raised, as it was raised.
        """
        ...

    def spread(self, matrix: RowMatrix) -> RowMatrix:
        """The same matrix, whose passes (`pursuit.solvers.rows.map_blocks`) run on the workers."""
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...


def engine_for(
    name: str = "local", *, address: str | None = None, workers: int | None = None, device: str = "auto",
    folder: Path | None = None,
) -> Engine:  # fmt: skip
    """The engine of a name. Asked again for the same, Ray's workers are the same until the engine is closed.

    Args:
        name: "local" or "ray".
        address: of a running Ray cluster, "auto" for the one of this machine; without (and without RAY_ADDRESS), Ray is
            started here.
        workers: how many; without, one for each GPU, or as many as fit with the threads of this process.
        device: of the run's settings: with "cpu" no GPU is taken.
        folder: where temporary files may lie that all machines read, such as the run folder.

    Raises:
        SettingsError: an unknown name, a number of workers below 1, or Ray is not installed.
        RunError: no cluster at the address, or one without what is asked for.
    """
    if name not in ENGINES:
        raise SettingsError(f"engine {name!r} is not known; use {' or '.join(ENGINES)}.")
    if name == "local":
        return LOCAL
    if importlib.util.find_spec("ray") is None:
        raise SettingsError("engine ray needs one more package: pip install ray")
    from pursuit.engine.ray_engine import ray_engine

    return ray_engine(address, workers, device, folder)
