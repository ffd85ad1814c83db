"""The directions that hold most of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.linalg import eigh

from pursuit.solvers.rows import Matrix, RowMatrix, RowView, as_rows, check_matrix, map_blocks

BLOCK_ROWS = 1024  # fixed, because the order of summation depends on it
EXACT = 4096  # up to so many columns (or rows) the eigenproblem is solved as a whole
EXTRA, ROUNDS = 32, 3
NOTHING = 1e-13  # second moments below this share of the largest are rounding


def subspace(rows: Matrix, dimension: int, *, seed: int = 0, sample: int | None = None) -> np.ndarray:
    """The subspace of a given dimension that the rows lie nearest to: their uncentred principal directions.

    Uncentred [ours], because the mean is what a pursuit follows. With up to 4,096 columns the largest eigenvectors of
    the (d, d) matrix of second moments, with up to 4,096 rows those of the (n, n) inner products: exact,
    O(n d · min(n, d) + min(n, d)³). Beyond, randomised subspace iteration with 32 extra directions and 3 rounds (Halko,
    Martinsson and Tropp 2011, algorithm 4.4), O(8 n d (dimension + 32)) [ours]. Rows are read 1,024 at a time; the
    result does not depend on how they are served. The largest entry of every direction is positive.

    Args:
        rows: (n, d), numpy or torch or a RowMatrix; may be larger than memory.
        dimension: how many directions; fewer come back when the rows span fewer.
        seed: of the sample and of the randomised iteration.
        sample: at most so many rows, drawn at random, are looked at; all without.

    Returns:
        (d, m) float64 with orthonormal columns, m ≤ dimension, the most important first.

    Raises:
        ValueError: no rows, rows that are all zero, a dimension below 1, NaN or infinity.
    """
    rows = as_rows(rows)
    count, width = check_matrix(rows, "rows")
    if count == 0 or width == 0:
        raise ValueError("a subspace needs at least one row and one feature")
    if dimension < 1:
        raise ValueError(f"dimension must be at least 1, not {dimension}")
    generator = np.random.default_rng(seed)
    if sample is not None and sample < count:
        rows = RowView(rows, np.sort(generator.permutation(count)[: max(1, sample)]))
        count = rows.shape[0]
    if width <= min(count, EXACT):
        values, vectors = _largest(_sum(rows, _moments), dimension)
    elif count <= EXACT:
        whole = np.concatenate([block for *_, block in map_blocks(rows, _checked, BLOCK_ROWS)])
        values, turns = _largest(whole @ whole.T, dimension)
        kept = values > NOTHING * values.max(initial=0.0)
        values, vectors = values[kept], np.linalg.qr(whole.T @ (turns[:, kept] / np.sqrt(values[kept])))[0]
    else:
        values, vectors = _iterate(rows, dimension, generator)
    kept = values > NOTHING * values.max(initial=0.0)
    if not kept.any():
        raise ValueError("the rows are all zero")
    vectors = vectors[:, kept]
    peaks = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return np.ascontiguousarray(vectors * np.sign(peaks))


def _checked(rows: np.ndarray, start: int) -> np.ndarray:
    block = np.ascontiguousarray(rows, dtype=np.float64)
    if not np.isfinite(block).all():
        raise ValueError(f"NaN or infinity in rows {start} … {start + len(block) - 1}")
    return block


def _moments(rows: np.ndarray, start: int) -> np.ndarray:
    block = _checked(rows, start)
    return block.T @ block


def _times(basis: np.ndarray, rows: np.ndarray, start: int) -> np.ndarray:
    block = _checked(rows, start)
    return block.T @ (block @ basis)


def _moments_within(basis: np.ndarray, rows: np.ndarray, start: int) -> np.ndarray:
    image = _checked(rows, start) @ basis
    return image.T @ image


def _sum(rows: RowMatrix, function: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """The sum of what a function gives for every block, in order."""
    parts = map_blocks(rows, function, BLOCK_ROWS)
    *_, total = next(parts)
    for *_, part in parts:
        total += part
    return total


def _largest(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest eigenvalues, descending, and their vectors as columns."""
    size = len(matrix)
    values, vectors = eigh(matrix, subset_by_index=[max(0, size - count), size - 1])
    return values[::-1], vectors[:, ::-1]


def _iterate(rows: RowMatrix, dimension: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Randomised subspace iteration on the second moments."""
    basis = generator.standard_normal((rows.shape[1], min(rows.shape[1], dimension + EXTRA)))
    for _ in range(ROUNDS):
        basis, _ = np.linalg.qr(_sum(rows, partial(_times, basis)))
    values, turns = _largest(_sum(rows, partial(_moments_within, basis)), dimension)
    return values, basis @ turns
