"""CRAIG: the rows that stand for all others, by facility location (arXiv 1906.01827)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix, diags_array

from pursuit.progress import progress
from pursuit.selectors.base import Selector
from pursuit.selectors.selection import Selection
from pursuit.solvers.facility_location import facility_location
from pursuit.solvers.neighbours import first_of_equal, nearest_neighbours, unit_sketch
from pursuit.solvers.rows import MAX_BLOCK_BYTES, block_bounds

if TYPE_CHECKING:
    from pursuit.store.features import Features

STEPS = np.float32(1 << 20)


class Craig(Selector):
    """Rows that stand for all others: every row of the pool is similar to one that was chosen.

    Greedy maximisation of f(S) = Σ_i max_{j ∈ S} max(0, cos(f_i, f_j)) with f the rows' gradients averaged over the
    checkpoints; a row's weight is the number of rows that it is the most similar chosen one to, itself included (CRAIG,
    arXiv 1906.01827, section 3). Of equal gains the lowest index comes first. [ours]: cosine in the place of the
    paper's distance, those below 0 counting as 0; rows equal bit by bit are compared once and counted as often as they
    occur.

    Up to `dense_rows` rows all pairs are compared, with n · (n + d) · 4 bytes of memory. Beyond, two rows are similar
    only if one is among the other's nearest `neighbours`, found by faiss among rows projected to `dimension` numbers:
    about 6 kB of memory a row, whatever d.
    """

    name: ClassVar[str] = "craig"
    paper: ClassVar[str] = "CRAIG, arXiv 1906.01827"

    dense_rows: int = Field(20_000, ge=1, description="up to so many rows all pairs are compared")
    neighbours: int = Field(32, ge=1, description="beyond that, how many nearest rows each row is similar to")
    dimension: int = Field(512, ge=8, description="numbers a row is projected to for finding its neighbours")

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        n, dense = features.num_rows, features.num_rows <= self.dense_rows
        rows = unit_sketch(features.average(), features.dimension if dense else self.dimension, seed)
        first, kind = first_of_equal(rows)
        rows = rows[first]
        similarity = _all_pairs(rows) if dense else _nearest_pairs(rows, self.neighbours)
        with progress("facility location", budget) as advance:
            chosen = facility_location(
                similarity, min(budget, len(first)), counts=np.bincount(kind), advance=advance
            )  # fmt: skip
        useful = chosen.gains > 0
        indices = first[chosen.indices[useful]]
        indices = np.concatenate([indices, np.setdiff1d(np.arange(n), indices)[: budget - len(indices)]])
        gains = np.zeros(budget)
        gains[: useful.sum()] = chosen.gains[useful]
        owner = chosen.owner[kind]
        owner[indices] = np.arange(budget)
        weights = np.bincount(owner[owner >= 0], minlength=budget).astype(np.float64)
        diagnostics = {
            "kernel": "all pairs" if dense else f"{self.neighbours} nearest neighbours",
            "mean_similarity": float(gains.sum() / n), "rows_without_similar": int((owner < 0).sum()),
            "distinct_rows": len(first), "mean_similarity_curve": _curve(gains / n),
        }  # fmt: skip
        return self._selection(features, indices, weights, columns={"score": gains}, diagnostics=diagnostics)


def _all_pairs(unit_rows: np.ndarray) -> np.ndarray:
    """(u, u) float32 max(0, cosine), exactly symmetric."""
    u = len(unit_rows)
    similarity = np.empty((u, u), dtype=np.float32)
    with progress("similarities", u) as advance:
        for start, stop in block_bounds(u, 4 * u, MAX_BLOCK_BYTES):
            part = _rounded(unit_rows[start:stop] @ unit_rows[start:].T)
            similarity[start:stop, start:] = part
            similarity[start:, start:stop] = part.T
            advance(stop - start)
    np.fill_diagonal(similarity, _is_not_zero(unit_rows))
    return similarity


def _nearest_pairs(unit_rows: np.ndarray, neighbours: int) -> csr_matrix:
    """(u, u) max(0, cosine) of pairs of which one is among the other's nearest neighbours."""
    with progress("neighbours", 1) as advance:
        near, cosines = nearest_neighbours(unit_rows, neighbours)
        advance(1)
    u = len(unit_rows)
    cosines = _rounded(cosines)
    kept = cosines > 0
    rows = np.broadcast_to(np.arange(u)[:, None], near.shape)[kept]
    pairs = csr_matrix((cosines[kept], (rows, near[kept])), shape=(u, u))
    return csr_matrix(pairs.maximum(pairs.T) + diags_array(_is_not_zero(unit_rows)))


def _rounded(cosines: np.ndarray) -> np.ndarray:
    """At least 0, in steps of 2⁻²⁰: sums of them are exact, so that equal gains are equal and the lower index wins."""
    return np.maximum(np.round(cosines * STEPS) / STEPS, 0).astype(np.float32)


def _is_not_zero(unit_rows: np.ndarray) -> np.ndarray:
    """(u,) float32 cosine of each row with itself: 1, or 0 for a zero row."""
    return np.asarray(unit_rows.any(axis=1), dtype=np.float32)


def _curve(gains: np.ndarray, points: int = 100) -> list[list[float]]:
    """[[rows chosen, objective], …] at up to `points` places."""
    places = np.unique(np.linspace(0, len(gains) - 1, min(points, len(gains))).astype(int))
    total = np.cumsum(gains)
    return [[int(place) + 1, float(total[place])] for place in places]
