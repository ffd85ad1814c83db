"""Choosing the rows that stand for all rows: facility location by lazy greedy."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix

from pursuit.solvers.rows import Advance, Vector, as_array


@dataclass(frozen=True)
class Facilities:
    """The rows chosen, in order.

    Attributes:
        indices: (k,) int64.
        gains: (k,) float64, by how much each raised the objective.
        owner: (n,) int64, the place in `indices` of the chosen row most similar to each row; −1 where none is similar.
    """

    indices: np.ndarray
    gains: np.ndarray
    owner: np.ndarray


def facility_location(
    similarity: np.ndarray | torch.Tensor | csr_matrix, budget: int, *, counts: Vector | None = None,
    advance: Advance | None = None,
) -> Facilities:  # fmt: skip
    """Greedy maximisation of Σ_i counts_i · max over chosen j of similarity_ji.

    Each step takes the row with the greatest gain, of equal ones the lowest index; gains never grow, so that a row
    whose last known gain is too small need not be looked at (Minoux 1978). The value is at least 1 − 1/e of the best
    possible (Nemhauser, Wolsey, Fisher 1978). When nothing can be gained any more, the rows left follow by index. The
    objective is that of CRAIG (arXiv 1906.01827, section 3). O(s) for the first gains of s similarities (n² where
    dense), then O(n), or the entries of a sparse row, for each gain that is looked at again: few a step in practice, n
    at worst. `similarity` is in memory; above some 20,000 rows give a sparse one, as `nearest_neighbours` finds.

    Args:
        similarity: (n, n), at least 0: row j holds the similarity of candidate j to every row; sparse: 0 where absent.
        budget: how many rows, at most n.
        counts: (n,) how often each row occurs; once without.
        advance: told 1 for every row chosen.

    Raises:
        ValueError: shapes that do not fit, a negative budget, NaN or negative numbers.
    """
    if isinstance(similarity, torch.Tensor):
        similarity = similarity.detach().cpu().float().numpy()
    n = similarity.shape[0]
    counts = np.ones(n) if counts is None else as_array(counts)
    _check(similarity, budget, counts)
    best, owner = np.zeros(n, dtype=np.float32), np.full(n, -1, dtype=np.int64)

    def candidate(row: int) -> tuple[np.ndarray | slice, np.ndarray]:
        if isinstance(similarity, np.ndarray):
            return slice(None), similarity[row]
        place = slice(similarity.indptr[row], similarity.indptr[row + 1])
        return similarity.indices[place], similarity.data[place]

    def gain(row: int) -> float:
        places, values = candidate(row)
        return float(np.maximum(values - best[places], 0) @ counts[places])

    bounds = [(-gain(row), row) for row in range(n)]
    heapq.heapify(bounds)
    chosen: list[int] = []
    gains: list[float] = []
    fresh = [0] * n  # how many were chosen when the bound was computed
    while bounds and len(chosen) < budget and bounds[0][0] < 0:
        bound, row = bounds[0]
        if fresh[row] < len(chosen):
            fresh[row] = len(chosen)
            heapq.heapreplace(bounds, (-gain(row), row))
            continue
        heapq.heappop(bounds)
        places, values = candidate(row)
        better = values > best[places]
        where = np.flatnonzero(better) if isinstance(places, slice) else places[better]
        best[where], owner[where] = values[better], len(chosen)
        chosen.append(row)
        gains.append(-bound)
        if advance is not None:
            advance(1)
    rest = np.setdiff1d(np.arange(n), chosen)[: budget - len(chosen)]
    if advance is not None:
        advance(len(rest))
    return Facilities(np.array([*chosen, *rest], np.int64), np.array([*gains, *np.zeros(len(rest))]), owner)


def _check(similarity: np.ndarray | csr_matrix, budget: int, counts: np.ndarray) -> None:
    n = similarity.shape[0]
    if similarity.shape != (n, n) or counts.shape != (n,):
        raise ValueError(f"similarity must be (n, n) and counts (n,); they are {similarity.shape} and {counts.shape}")
    if not budget >= 0 or int(budget) != budget:
        raise ValueError(f"budget must be a whole number of at least 0, not {budget}")
    values = similarity if isinstance(similarity, np.ndarray) else similarity.data
    for name, numbers in (("similarity", values), ("counts", counts)):
        if not (numbers.min(initial=0) >= 0 and numbers.max(initial=0) < np.inf):
            raise ValueError(f"{name} holds a negative number, NaN or infinity")
