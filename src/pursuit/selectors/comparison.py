"""Beside the rows that follow a goal jointly: as many of the rows most similar to it, as top-k would take them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy.optimize import minimize

from pursuit.progress import progress
from pursuit.solvers.nnls import nnls
from pursuit.solvers.rows import RowMatrix, map_blocks, row_dots

NEAR = 0.95  # cosine from which two rows count as near-duplicates
PAIRED = 2_000  # rows, in order of choice, among which near-duplicates are looked for
EXACT, FITTED = 2_000, 20_000  # up to so many rows are fitted exactly; up to so many by iterations
ITERATIONS = 100
BLOCK_ROWS = 1024

Pair = tuple[int, int, float]  # two rows of the pool and their cosine


def most_similar(rows: RowMatrix, goals: np.ndarray, shares: np.ndarray) -> list[np.ndarray]:
    """For each goal the rows of largest inner product with it, each row for one goal only, the goals in turn.

    Args:
        rows: (N, D).
        goals: (G, D).
        shares: (G,) how many rows for each; at most N together.
    """
    left = np.ones(rows.shape[0], dtype=bool)
    chosen = []
    for goal, share in zip(goals, shares, strict=True):
        scores = np.concatenate([part for *_, part in map_blocks(rows, partial(_dots, goal=goal), BLOCK_ROWS)])
        top = np.argsort(np.where(left, -scores, np.inf), kind="stable")[:share]
        left[top] = False
        chosen.append(top)
    return chosen


def _dots(rows: np.ndarray, start: int, goal: np.ndarray) -> np.ndarray:
    return row_dots(rows, goal)


def smallest_residual(rows: np.ndarray, goal: np.ndarray) -> float:
    """min over w ≥ 0 of ‖goal − Σ w_i row_i‖ / ‖goal‖, exact up to 2,000 rows; beyond, from above, to about 0.002.

    Args:
        rows: (k, D) float64.
        goal: (D,), not zero.
    """
    if len(rows) <= EXACT:
        weights = nnls(rows @ rows.T, rows @ goal)
    else:
        with progress("comparison", ITERATIONS, "steps") as advance:
            found = minimize(
                _distance, np.zeros(len(rows)), args=(rows, goal / np.linalg.norm(goal)), jac=True, method="L-BFGS-B",
                bounds=[(0, None)] * len(rows), options={"maxiter": ITERATIONS, "ftol": 1e-8},
                callback=lambda _: advance(1),
            )  # fmt: skip
        weights = found.x * np.linalg.norm(goal)
    return float(np.linalg.norm(goal - weights @ rows) / np.linalg.norm(goal))


def _distance(weights: np.ndarray, rows: np.ndarray, goal: np.ndarray) -> tuple[float, np.ndarray]:
    """‖goal − Σ w_i row_i‖² / 2 and its gradient."""
    left = goal - weights @ rows
    return float(left @ left) / 2, -(rows @ left)


def near_pairs(rows: RowMatrix, indices: np.ndarray) -> list[Pair]:
    """Pairs with a cosine of at least 0.95 among the first 2,000 of chosen rows, most alike first."""
    some = np.sort(indices[:PAIRED])
    found = np.asarray(rows[some], np.float64)
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    found = found / np.where(norms > 0, norms, 1)
    cosines = np.triu(found @ found.T, 1)
    first, second = np.nonzero(cosines >= NEAR)
    values = np.minimum(cosines[first, second], 1.0)
    order = np.lexsort((second, first, -values))
    return [(int(some[first[p]]), int(some[second[p]]), float(values[p])) for p in order]


def pairs_shown(pairs: Sequence[Pair], besides: np.ndarray | None = None, count: int = 20) -> list[list[float]]:
    """The first pairs as [row, row, cosine], without those of which both rows are also in `besides`."""
    known = set() if besides is None else set(besides.tolist())
    return [list(pair) for pair in pairs if not (pair[0] in known and pair[1] in known)][:count]
