"""Matrices of features that are read by rows, and that worker processes can be sent without their numbers."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pursuit.errors import StoreError

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

    Args:
        paths: files of the shards; a worker process that is sent this matrix opens them itself.
    """

    def __init__(self, shards: Sequence[Tensor], shard_rows: int, paths: Sequence[Path] | None = None) -> None:
        self.shards, self.shard_rows, self.paths = shards, shard_rows, paths
        self.shape: tuple[int, ...] = (sum(len(shard) for shard in shards), shards[0].shape[1])

    def __getitem__(self, rows: Rows) -> NDArray[np.float32]:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.shape[0])
            if step != 1:
                return self[np.arange(start, stop, step)]
            parts = [
                shard[max(start - base, 0) : stop - base]
                for shard, base in self._with_base(start, stop)
            ]  # fmt: skip
            return torch.cat(parts).float().numpy() if parts else np.empty((0, self.shape[1]), np.float32)
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else np.where(rows < 0, rows + self.shape[0], rows)
        found = np.empty((len(rows), self.shape[1]), dtype=np.float32)
        owner = rows // self.shard_rows
        for number in np.unique(owner):
            mine = np.flatnonzero(owner == number)
            found[mine] = self.shards[number][torch.from_numpy(rows[mine] - number * self.shard_rows)].float().numpy()
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        if self.paths is None:
            return Sharded, (self.shards, self.shard_rows)
        return _reopened, ([str(path.absolute()) for path in self.paths], self.shard_rows)

    def _with_base(self, start: int, stop: int) -> Iterable[tuple[Tensor, int]]:
        if start >= stop:
            return
        for number in range(start // self.shard_rows, -(-stop // self.shard_rows)):
            yield self.shards[number], number * self.shard_rows


def _reopened(paths: Sequence[str], shard_rows: int) -> Sharded:
    """The rows of shards that another process has found whole."""
    shards = []
    for path in paths:
        try:
            with safe_open(path, framework="pt") as handle:
                shards.append(handle.get_tensor("features"))
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"{path}: cannot be read on {platform.node()} ({error}). The run folder must lie on a file system that "
                "all machines share, under the same path."
            ) from error
    return Sharded(shards, shard_rows, [Path(path) for path in paths])
