"""What runs in the processes of a Ray cluster: functions that are fetched once and called for many items."""

from __future__ import annotations

import os
import pickle
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from pursuit.errors import StoreError

_kept: dict[str, Any] = {}  # functions and matrices that this process has fetched


def fetch(reference: Any) -> Any:
    """What a reference stands for, kept in this process until it is told to forget it."""
    key = reference.hex()
    if key not in _kept:
        _kept[key] = ray.get(reference)
    return _kept[key]


@dataclass(frozen=True)
class Outcome:
    """What came of one item: a value, or an error and where it was raised; and the progress that it made.

    The value is pickled as a whole: Ray itself would hand arrays out read-only.
    """

    value: bytes = b""
    error: Exception | None = None
    trace: str = ""
    units: float = 0.0


class Worker:
    """One process of the pool. It calls one function at a time; progress can be asked for meanwhile."""

    def __init__(self) -> None:
        self._ticket: Any = None
        self._units = 0.0

    def ready(self) -> tuple[int, str]:
        """Process id and machine."""
        return os.getpid(), socket.gethostname()

    def call(self, reference: list[Any], ticket: Any, item: Any, counted: bool) -> Outcome:
        """The function behind the reference (in a list, so that Ray does not fetch it for every item), of an item."""
        self._ticket, self._units = ticket, 0.0
        try:
            function: Callable[..., Any] = fetch(reference[0])
            value = pickle.dumps(function(item, self._advance) if counted else function(item), protocol=5)
        except Exception as error:
            return Outcome(error=_sendable(error), trace=traceback.format_exc(), units=self._units)
        return Outcome(value, units=self._units)

    @ray.method(concurrency_group="watch")
    def progress(self) -> tuple[Any, float]:
        """The ticket of the item at work, and how many units of it are done."""
        return self._ticket, self._units

    def forget(self, keys: list[str]) -> None:
        """Let go of functions and matrices."""
        for key in keys:
            _kept.pop(key, None)

    def _advance(self, units: float) -> None:
        self._units += units


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class There:
    """A matrix that the driver has spread, as workers see it: a RowMatrix fetched when first read."""

    def __init__(self, reference: Any, shape: tuple[int, ...]) -> None:
        self.reference, self.shape = reference, shape

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        found: np.ndarray = fetch(self.reference)[rows]
        return found


class MappedFile:
    """A matrix in a file that every machine sees, memory-mapped when first read.

    Args:
        mapped: the memory map of the process that wrote it.
    """

    def __init__(self, mapped: np.memmap) -> None:
        self.path, self.dtype, self.offset = Path(str(mapped.filename)).absolute(), mapped.dtype, mapped.offset
        self.shape = mapped.shape
        self._rows: np.ndarray | None = None

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        if self._rows is None:
            try:
                self._rows = np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
            except OSError as error:
                raise StoreError(
                    f"{self.path}: cannot be read on {socket.gethostname()} ({error.strerror}). The run folder must "
                    "lie on a file system that all machines of the cluster share."
                ) from error
        return np.asarray(self._rows[rows])


def on_blocks(
    matrix: Any, function: Callable[[np.ndarray, int], Any], block_rows: int, bounds: tuple[int, int]
) -> list[Any]:
    """function(block, its first row) of the blocks of some consecutive rows."""
    start, stop = bounds
    return [function(matrix[at : min(stop, at + block_rows)], at) for at in range(start, stop, block_rows)]
