"""Rows that cover all others: greedy k-center."""

from __future__ import annotations

from functools import partial

import numpy as np

from pursuit.solvers.rows import (
    DEFAULT_MEMORY_BYTES,
    Advance,
    Matrix,
    as_rows,
    check_matrix,
    map_blocks,
    pass_rows,
    row_dots,
)

TIE = 1e-12  # squared distances that differ by less, relative to the largest squared norm, are equal


def farthest_point(
    rows: Matrix, count: int, *, start: int | None = None, memory_bytes: int = DEFAULT_MEMORY_BYTES,
    advance: Advance | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Choose rows one after another, each the farthest from those chosen before (Gonzalez 1985).

    The largest distance of any row to the choice is at most twice what the best choice of as many rows could reach.
    Every choice reads the rows once: O(count · n d). Of equally far rows the lowest index wins, and the result does not
    depend on how the rows are served.

    Args:
        rows: (n, d), numpy or torch or a RowMatrix; may be larger than memory, and is then read in blocks.
        count: how many; more than n means all n.
        start: the first row; the one with the largest norm without [ours].
        memory_bytes: has no effect: blocks of rows are small and always the same; on top come O(n) numbers.
        advance: told 1 for every row chosen.

    Returns:
        indices (count,) int64 in order of choice; distances (count,) float64 of each to the nearest chosen before it,
        infinity for the first.

    Raises:
        ValueError: a negative count, a start that is no row, NaN or infinity (the row is named).
    """
    rows = as_rows(rows)
    n, width = check_matrix(rows, "rows")
    if count < 0:
        raise ValueError(f"count must be at least 0, not {count}")
    squares = np.empty(n)
    for first, stop, part in map_blocks(rows, _squares, pass_rows(width)):
        squares[first:stop] = part
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise ValueError(f"row {bad[0]} holds NaN, infinity or numbers too large to square")
    if start is not None and not 0 <= start < n:
        raise ValueError(f"start must be a row in 0 … {n - 1}, not {start}")
    tie = TIE * float(squares.max(initial=0.0))
    nearest = squares.copy() if start is None else np.where(np.arange(n) == start, np.inf, squares)
    chosen: list[int] = []
    distances: list[float] = []
    for step in range(min(int(count), n)):
        best = int(np.argmax(nearest >= nearest.max() - tie))
        distances.append(float(np.sqrt(nearest[best])) if step else np.inf)
        chosen.append(best)
        centre = np.ascontiguousarray(rows[np.array([best])][0], dtype=np.float64)
        if not step:
            nearest = np.full(n, np.inf)
        for first, stop, dots in map_blocks(rows, partial(_dots, centre), pass_rows(width)):
            apart = squares[first:stop] - 2 * dots + squares[best]
            np.minimum(nearest[first:stop], np.maximum(apart, 0.0), out=nearest[first:stop])
        nearest[nearest <= tie] = 0.0
        nearest[chosen] = -np.inf
        if advance is not None:
            advance(1)
    return np.array(chosen, dtype=np.int64), np.array(distances)


def _squares(rows: np.ndarray, _: int) -> np.ndarray:
    block = np.ascontiguousarray(rows, dtype=np.float64)
    return np.einsum("ij,ij->i", block, block)


def _dots(centre: np.ndarray, rows: np.ndarray, _: int) -> np.ndarray:
    return row_dots(rows, centre)
