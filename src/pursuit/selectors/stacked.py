"""The trajectory as one matrix: the features of all checkpoints side by side, each in a subspace of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pursuit.progress import progress
from pursuit.solvers.rows import RowMatrix, RowView
from pursuit.solvers.subspace import subspace

if TYPE_CHECKING:
    from pursuit.features import Features

BLOCK_ROWS = 1024  # always so many rows are projected at once, so that equal rows get equal bits


@dataclass(frozen=True)
class Trajectory:
    """Pool and goal in the same coordinates.

    Attributes:
        rows: (N, D), D = Σ_t d_t.
        goal: (D,) float64, what is to be followed: the mean of the target, or of the pool.
        dimensions: d_t of every checkpoint.
        kept: of every checkpoint, the share of the goal's squared length that its subspace keeps.
    """

    rows: RowMatrix
    goal: np.ndarray
    dimensions: list[int]
    kept: list[float]


@contextmanager
def stacked(
    features: Features, target: Features | None, *, dimension: int, sample: int, shares: np.ndarray, seed: int,
    memory_bytes: int,
) -> Iterator[Trajectory]:  # fmt: skip
    """The trajectory of the pool and its goal; a matrix larger than `memory_bytes` lies in a temporary file meanwhile.

    Args:
        target: its mean is the goal; the pool's own mean without.
        dimension: d_t; where it is not below the features' own dimension they stay as they are, and are not copied.
        sample: random pool rows that the subspaces are found from. With a target its rows join them, scaled so that
            both have the same weight [ours].
        shares: (T,) β_t; checkpoint t is multiplied by √β_t.
    """
    scales = np.sqrt(shares)
    pool = [features.checkpoint(number) for number in range(features.num_checkpoints)]
    means = [_mean(matrix) for matrix in (pool if target is None else _checkpoints(target))]
    if features.dimension <= dimension:
        rows = _SideBySide(pool, scales)
        goal = np.concatenate([scale * mean for scale, mean in zip(scales, means, strict=True)])
        yield Trajectory(rows, goal, [features.dimension] * len(pool), [1.0] * len(pool))
        return
    bases = []
    for number, matrix in enumerate(pool):
        seen = _Sample(matrix, None if target is None else target.checkpoint(number), sample, seed + number)
        bases.append(subspace(seen, dimension, seed=seed + number))
    parts = [basis.T @ mean for basis, mean in zip(bases, means, strict=True)]
    kept = [float(part @ part / (mean @ mean)) if mean.any() else 0.0 for part, mean in zip(parts, means, strict=True)]
    goal = np.concatenate([scale * part for scale, part in zip(scales, parts, strict=True)])
    shape = (features.num_rows, len(goal))
    with tempfile.TemporaryDirectory(prefix="pursuit-") as folder:
        if shape[0] * shape[1] * 4 <= memory_bytes:
            out = np.empty(shape, np.float32)
        else:
            out = np.lib.format.open_memmap(Path(folder) / "rows.npy", "w+", np.float32, shape)
        _project(pool, bases, scales, out)
        yield Trajectory(out, goal, [basis.shape[1] for basis in bases], kept)
        del out


def _checkpoints(features: Features) -> list[RowMatrix]:
    return [features.checkpoint(number) for number in range(features.num_checkpoints)]


def _mean(matrix: RowMatrix) -> np.ndarray:
    total = np.zeros(matrix.shape[1])
    for start in range(0, matrix.shape[0], BLOCK_ROWS):
        total += np.ascontiguousarray(matrix[start : start + BLOCK_ROWS], np.float64).sum(axis=0)
    return total / matrix.shape[0]


def _project(pool: Sequence[RowMatrix], bases: Sequence[np.ndarray], scales: np.ndarray, out: np.ndarray) -> None:
    column = 0
    with progress("subspaces", len(out) * len(pool)) as advance:
        for matrix, basis, scale in zip(pool, bases, scales, strict=True):
            columns = slice(column, column + basis.shape[1])
            block = np.zeros((BLOCK_ROWS, basis.shape[0]))
            for start in range(0, len(out), BLOCK_ROWS):
                rows = matrix[start : start + BLOCK_ROWS]
                block[: len(rows)] = rows
                out[start : start + len(rows), columns] = (block @ (scale * basis))[: len(rows)]
                advance(len(rows))
            column = columns.stop


class _SideBySide:
    """The scaled rows of several matrices, one after another, computed when asked for."""

    def __init__(self, matrices: Sequence[RowMatrix], scales: np.ndarray) -> None:
        self.matrices, self.scales = matrices, scales
        self.shape: tuple[int, ...] = (matrices[0].shape[0], sum(matrix.shape[1] for matrix in matrices))

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        parts = [scale * np.asarray(m[rows], np.float64) for m, scale in zip(self.matrices, self.scales, strict=True)]
        return np.concatenate(parts, axis=1)


class _Sample:
    """Random rows of the pool, then all rows of the target, scaled to the same weight together."""

    def __init__(self, pool: RowMatrix, target: RowMatrix | None, sample: int, seed: int) -> None:
        count = pool.shape[0]
        some = np.sort(np.random.default_rng(seed).permutation(count)[:sample])
        self.pool, self.target = RowView(pool, some), target
        extra = 0 if target is None else target.shape[0]
        self.scale = np.sqrt(len(some) / extra) if extra else 1.0
        self.shape: tuple[int, ...] = (len(some) + extra, pool.shape[1])

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        numbers, split = np.arange(self.shape[0])[rows], self.pool.shape[0]
        first = np.asarray(self.pool[numbers[numbers < split]], np.float64)
        if self.target is None:
            return first
        return np.concatenate([first, self.scale * np.asarray(self.target[numbers[numbers >= split] - split])])
