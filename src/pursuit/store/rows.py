"""Matrices of features that are read by rows, and that worker processes can be sent without their numbers."""

from __future__ import annotations

import platform
from collections.abc import Sequence
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


class RowMatrix(Protocol):
    """A matrix read by rows: a NumPy array, or a view of one that need not fit in memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any, /) -> NDArray[Any]: ...


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


class Sharded:
    """(N, d) float32 rows, read from memory-mapped shards of equal height (the last may be lower).

    Rows are decoded when they are asked for, and only those.

    Args:
        shards: `features` of each shard, in one of the forms of `pursuit.store.codecs`.
        paths: files of the shards; a worker process that is sent this matrix opens them itself.
        scales: of each shard, where its rows are not floats.
        dimension: d; the shards' width without.
    """

    def __init__(
        self, shards: Sequence[Tensor], shard_rows: int, paths: Sequence[Path] | None = None, *,
        scales: Sequence[Tensor] | None = None, dimension: int | None = None,
    ) -> None:  # fmt: skip
        self.shards, self.shard_rows, self.paths, self.scales = shards, shard_rows, paths, scales
        width = shards[0].shape[1] if dimension is None else dimension
        self.shape: tuple[int, ...] = (sum(len(shard) for shard in shards), width)

    def __getitem__(self, rows: Rows) -> NDArray[np.float32]:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.shape[0])
            if step != 1:
                return self[np.arange(start, stop, step)]
            return self._between(start, max(start, stop))
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else np.where(rows < 0, rows + self.shape[0], rows)
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
        scales = None if self.scales is None else self.scales[number][rows]
        decode(self.shards[number][rows], scales, out)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.paths is None:
            return _sharded, (self.shards, self.shard_rows, self.scales, self.shape[1])
        return _reopened, ([str(path.absolute()) for path in self.paths], self.shard_rows, self.shape[1])


def _sharded(shards: Sequence[Tensor], shard_rows: int, scales: Sequence[Tensor] | None, dimension: int) -> Sharded:
    return Sharded(shards, shard_rows, scales=scales, dimension=dimension)


def _reopened(paths: Sequence[str], shard_rows: int, dimension: int) -> Sharded:
    """The rows of shards that another process has found whole."""
    shards, scales = [], []
    for path in paths:
        try:
            with safe_open(path, framework="pt") as handle:
                shards.append(handle.get_tensor("features"))
                if "scales" in handle.keys():  # noqa: SIM118 (not a dictionary)
                    scales.append(handle.get_tensor("scales"))
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"{path}: cannot be read on {platform.node()} ({error}). The run folder must lie on a file system that "
                "all machines share, under the same path."
            ) from error
    return Sharded(shards, shard_rows, [Path(path) for path in paths], scales=scales or None, dimension=dimension)
