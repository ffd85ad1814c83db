"""Matrices of features that are read by rows, and that worker processes can be sent without their numbers."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pursuit.errors import StoreError
from pursuit.store.codecs import decode

Rows = slice | NDArray[np.int64]
ROWS = ("features", "scales")  # what a shard holds of them
MAPPED = 4096


class RowMatrix(Protocol):
    """A matrix read by rows: a NumPy array, or a view of one that need not fit in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any, /) -> NDArray[Any]: ...


def row_numbers(rows: Rows | NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """The numbers of rows given by a slice, numbers (from the end where they are negative) or a mask of all `count`."""
    if isinstance(rows, slice):
        return np.arange(*rows.indices(count))
    given = np.asarray(rows)
    if given.dtype == bool:
        return np.flatnonzero(given)
    numbers = given.astype(np.int64, copy=False)
    return np.where(numbers < 0, numbers + count, numbers)


class Average:
    """Σ_t w_t · checkpoint_t, computed for the rows that are asked for."""

    def __init__(self, checkpoints: Sequence[RowMatrix], weights: NDArray[np.float64]) -> None:
        self.checkpoints, self.weights = checkpoints, weights.astype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.checkpoints[0].shape

    def __getitem__(self, rows: Rows) -> NDArray[np.float32]:
        total = self.checkpoints[0][rows] * self.weights[0]
        for matrix, weight in zip(self.checkpoints[1:], self.weights[1:], strict=True):
            total += matrix[rows] * weight
        return total


class ShardFiles:
    """The tensors of shards on disk, by number; a file is mapped when it is asked for.

    At most `MAPPED` at once: a process may hold some 65,000 mappings, and ten million rows have as many shards.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._opened = lru_cache(maxsize=MAPPED)(self._open)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Mapping[str, Tensor]:
        return self._opened(int(number))

    def _open(self, number: int) -> Mapping[str, Tensor]:
        path = self.paths[number]
        try:
            with safe_open(path, framework="pt") as handle:
                return {name: handle.get_tensor(name) for name in ROWS if name in handle.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"{path}: cannot be read on {platform.node()} ({error}). The run folder must lie on a file system that "
                "all machines share, under the same path."
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardFiles, ([path.absolute() for path in self.paths],)


class Sharded:
    """(N, d) float32 rows, read from shards of equal height (the last may be lower).

    Rows are decoded when they are asked for, and only those. A worker process that is sent this matrix opens the files
    itself.

    Args:
        shards: `features`, and `scales` where rows are not floats, in one of the forms of `pursuit.store.codecs`.
        shape: (N, d).
    """

    def __init__(
        self, shards: ShardFiles | Sequence[Mapping[str, Tensor]], shard_rows: int, shape: tuple[int, int]
    ) -> None:  # fmt: skip
        self.shards, self.shard_rows = shards, shard_rows
        self.shape: tuple[int, ...] = shape

    def __getitem__(self, rows: Rows) -> NDArray[np.float32]:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.shape[0])
            if step != 1:
                return self[np.arange(start, stop, step)]
            return self._between(start, max(start, stop))
        rows = row_numbers(rows, self.shape[0])
        found = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        owner = rows // self.shard_rows
        for number in np.unique(owner):
            mine = np.flatnonzero(owner == number)
            part = np.empty((len(mine), self.shape[1]), dtype=np.float32)
            self._decode(number, torch.from_numpy(rows[mine] - number * self.shard_rows), part)
            found[mine] = part
        return found

    def _between(self, start: int, stop: int) -> NDArray[np.float32]:
        found = np.empty((stop - start, self.shape[1]), dtype=np.float32)
        while start < stop:
            number, first = divmod(start, self.shard_rows)
            last = min(first + stop - start, self.shard_rows)
            place = len(found) - (stop - start)
            self._decode(number, slice(first, last), found[place : place + last - first])
            start += last - first
        return found

    def _decode(self, number: int, rows: slice | Tensor, out: NDArray[np.float32]) -> None:
        shard = self.shards[number]
        scales = shard["scales"][rows] if "scales" in shard else None
        decode(shard["features"][rows], scales, out)
