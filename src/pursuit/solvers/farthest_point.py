"""Rows that cover all others: greedy k-center."""

from __future__ import annotations

import numpy as np

from pursuit.solvers.rows import DEFAULT_MEMORY_BYTES, RowMatrix, blocks, check_matrix, row_dots

TIE = 1e-12  # squared distances that differ by less, relative to the largest squared norm, are equal


def farthest_point(
    rows: RowMatrix, count: int, *, start: int | None = None, memory_bytes: int = DEFAULT_MEMORY_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Choose rows one after another, each the farthest from those chosen before (Gonzalez 1985).

    The largest distance of any row to the choice is at most twice what the best choice of as many rows could reach.
    Every choice reads the rows once: O(count · n d). Of equally far rows the lowest index wins, and the result does not
    depend on `memory_bytes`.

    Args:
        rows: (n, d); may be larger than memory, and is then read in blocks.
        count: how many; more than n means all n.
        start: the first row; the one with the largest norm without [ours].
        memory_bytes: bound on the memory of a block of rows; on top come O(n) numbers.

    Returns:
        indices (count,) int64 in order of choice; distances (count,) float64 of each to the nearest chosen before it,
        infinity for the first.

    Raises:
        ValueError: a negative count, a start that is no row, NaN or infinity (the row is named).
    """
    n, _ = check_matrix(rows, "rows")
    if count < 0:
        raise ValueError(f"count must be at least 0, not {count}")
    squares = np.empty(n)
    for first, stop, block in blocks(rows, np.float64, memory_bytes // 4):
        squares[first:stop] = np.einsum("ij,ij->i", block, block)
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
        for first, stop, block in blocks(rows, np.float64, memory_bytes // 4):
            apart = squares[first:stop] - 2 * row_dots(block, centre) + squares[best]
            np.minimum(nearest[first:stop], np.maximum(apart, 0.0), out=nearest[first:stop])
        nearest[nearest <= tie] = 0.0
        nearest[chosen] = -np.inf
    return np.array(chosen, dtype=np.int64), np.array(distances)
