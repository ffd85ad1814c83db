"""The trajectory as one matrix: the features of all checkpoints side by side, each in a subspace of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pursuit.engine import LOCAL, Engine
from pursuit.progress import progress
from pursuit.solvers.rows import MAPPED_BYTES, RowMatrix, RowView, map_blocks, release
from pursuit.solvers.subspace import subspace

if TYPE_CHECKING:
    from pursuit.store.features import Features

BLOCK_ROWS = 1024  # always so many rows are projected at once, so that equal rows get equal bits


@dataclass(frozen=True)
class Trajectory:
    """Pool and goals in the same coordinates.

    Attributes:
        rows: (N, D), D = Σ_t d_t.
        goals: (G, D) float64, what is to be followed: the mean of the target or of each of its parts, or of the pool.
        dimensions: d_t of every checkpoint.
        kept: for each goal, of every checkpoint, the share of the goal's squared length that its subspace keeps.
        engine: where passes over the rows run.
    """

    rows: RowMatrix
    goals: np.ndarray
    dimensions: list[int]
    kept: list[list[float]]
    engine: Engine = LOCAL

    def part(self, indices: np.ndarray) -> RowMatrix:
        """Some of the rows, in this order, with passes on the same workers."""
        return self.engine.spread(RowView(self.rows, indices))


@contextmanager
def stacked(
    features: Features, target: Features | None, *, dimension: int, sample: int, shares: np.ndarray, seed: int,
    memory_bytes: int, parts: Sequence[np.ndarray] | None = None,
) -> Iterator[Trajectory]:  # fmt: skip
    """The trajectory of the pool and its goals; a matrix larger than `memory_bytes` lies in a temporary file meanwhile.

    Args:
        target: its mean is the goal; the pool's own mean without.
        dimension: d_t; where it is not below the features' own dimension they stay as they are, and are not copied.
        sample: random pool rows that the subspaces are found from. With a target its rows join them, scaled so that
            both have the same weight [ours].
        shares: (T,) β_t; checkpoint t is multiplied by √β_t.
        parts: rows of the target, for each goal those that it is the mean of; one goal, the mean of all, without.
    """
    scales = np.sqrt(shares)
    pool = [features.checkpoint(number) for number in range(features.num_checkpoints)]
    followed = pool if target is None else _checkpoints(target)
    goals = [followed] if parts is None else [[RowView(matrix, rows) for matrix in followed] for rows in parts]
    means = [[_mean(matrix) for matrix in goal] for goal in goals]
    if features.dimension <= dimension:
        whole = [[1.0] * len(pool)] * len(goals)
        rows = features.engine.spread(_SideBySide(pool, scales))
        yield Trajectory(rows, _joined(means, scales), [features.dimension] * len(pool), whole, features.engine)
        return
    bases = []
    for number, matrix in enumerate(pool):
        seen = _Sample(matrix, None if target is None else target.checkpoint(number), sample, seed + number)
        bases.append(subspace(features.engine.spread(seen), dimension, seed=seed + number))
    within = [[basis.T @ mean for basis, mean in zip(bases, goal, strict=True)] for goal in means]
    joined = _joined(within, scales)
    shape = (features.num_rows, joined.shape[1])
    with tempfile.TemporaryDirectory(prefix="pursuit-", dir=features.engine.folder) as folder:
        if shape[0] * shape[1] * 4 <= memory_bytes:
            out = np.empty(shape, np.float32)
        else:
            out = np.lib.format.open_memmap(Path(folder) / "rows.npy", "w+", np.float32, shape)
        _project(pool, bases, scales, out)
        rows = features.engine.spread(out)
        del out
        dimensions = [basis.shape[1] for basis in bases]
        yield Trajectory(rows, joined, dimensions, _kept(within, means), features.engine)
        del rows


def _joined(goals: Sequence[Sequence[np.ndarray]], scales: np.ndarray) -> np.ndarray:
    """(G, D): the scaled vectors of every goal side by side."""
    return np.stack([np.concatenate([scale * v for scale, v in zip(scales, goal, strict=True)]) for goal in goals])


def _kept(within: Sequence[Sequence[np.ndarray]], means: Sequence[Sequence[np.ndarray]]) -> list[list[float]]:
    return [
        [float(part @ part / (mean @ mean)) if mean.any() else 0.0 for part, mean in zip(*goal, strict=True)]
        for goal in zip(within, means, strict=True)
    ]


def _checkpoints(features: Features) -> list[RowMatrix]:
    return [features.checkpoint(number) for number in range(features.num_checkpoints)]


def _mean(matrix: RowMatrix) -> np.ndarray:
    total = np.zeros(matrix.shape[1])
    for _, _, part in map_blocks(matrix, _sum_of_rows, BLOCK_ROWS):
        total += part
    return total / matrix.shape[0]


def _sum_of_rows(rows: np.ndarray, _: int) -> np.ndarray:
    return np.ascontiguousarray(rows, np.float64).sum(axis=0)


def _project(pool: Sequence[RowMatrix], bases: Sequence[np.ndarray], scales: np.ndarray, out: np.ndarray) -> None:
    column = written = 0
    with progress("subspaces", len(out) * len(pool)) as advance:
        for matrix, basis, scale in zip(pool, bases, scales, strict=True):
            columns = slice(column, column + basis.shape[1])
            scaled = (scale * basis).astype(np.float32)
            for start, stop, within in map_blocks(matrix, partial(_within, scaled), BLOCK_ROWS):
                out[start:stop, columns] = within
                advance(stop - start)
                written += out[start:stop].nbytes
                if written > MAPPED_BYTES:
                    release(out)
                    written = 0
            column = columns.stop
    release(out)


def _within(basis: np.ndarray, rows: np.ndarray, _: int) -> np.ndarray:
    """(rows, d_t) float32 coordinates; a short block is filled up, as a product may round by its height."""
    block = np.ascontiguousarray(rows, np.float32)
    if len(block) < BLOCK_ROWS:
        block = np.concatenate([block, np.zeros((BLOCK_ROWS - len(block), block.shape[1]), np.float32)])
    return (block @ basis)[: len(rows)]


class _SideBySide:
    """The scaled rows of several matrices, one after another, computed when asked for."""

    def __init__(self, matrices: Sequence[RowMatrix], scales: np.ndarray) -> None:
        self.matrices, self.scales = matrices, scales
        self.shape: tuple[int, ...] = (matrices[0].shape[0], sum(matrix.shape[1] for matrix in matrices))

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        parts = [scale * np.asarray(m[rows], np.float64) for m, scale in zip(self.matrices, self.scales, strict=True)]
        return np.concatenate(parts, axis=1)


class _Sample:
    """Random rows of the pool, then all rows of the target, scaled to the same sum of squares."""

    def __init__(self, pool: RowMatrix, target: RowMatrix | None, sample: int, seed: int) -> None:
        count = pool.shape[0]
        some = np.sort(np.random.default_rng(seed).permutation(count)[:sample])
        self.pool, self.target = RowView(pool, some), target
        extra = 0 if target is None else target.shape[0]
        self.scale = 1.0 if target is None else np.sqrt(_squares(self.pool) / (_squares(target) or 1.0))
        self.shape: tuple[int, ...] = (len(some) + extra, pool.shape[1])

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        numbers, split = np.arange(self.shape[0])[rows], self.pool.shape[0]
        first = np.asarray(self.pool[numbers[numbers < split]], np.float64)
        if self.target is None:
            return first
        return np.concatenate([first, self.scale * np.asarray(self.target[numbers[numbers >= split] - split])])


def _squares(matrix: RowMatrix) -> float:
    """Sum over all numbers of their squares."""
    return sum(found for *_, found in map_blocks(matrix, _block_squares, BLOCK_ROWS))


def _block_squares(rows: np.ndarray, _: int) -> float:
    return float(np.square(rows, dtype=np.float64).sum())
