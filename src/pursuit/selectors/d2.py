"""D2 Pruning: difficult rows, but no two alike, by messages on a graph of neighbours (arXiv 2310.07931)."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from pursuit.progress import progress
from pursuit.selectors.base import Selector
from pursuit.selectors.loss import row_gradient_norms, row_losses
from pursuit.selectors.selection import Selection
from pursuit.solvers.neighbours import nearest_neighbours, unit_sketch

if TYPE_CHECKING:
    from pursuit.store.features import Features


class D2(Selector):
    """Rows that are difficult, or among difficult ones, and not like those already chosen.

    Every row starts with its difficulty s_i. Forward: x_i = s_i + Σ over its nearest neighbours j of
    exp(−forward · d_ij²) · s_j, with d_ij the distance of their unit gradients. Then, until the budget is filled: the
    row with the largest x is chosen, and each neighbour j of it loses exp(−reverse · d_ij²) · x of the chosen (D2
    Pruning, arXiv 2310.07931, section 3). Of equal rows the lowest index comes first. [ours]: the graph is made of the
    gradients averaged over the checkpoints, projected to `dimension` numbers; the difficulty is the gradient norm or
    the loss. A smaller `reverse` spreads the choice more.
    """

    name: ClassVar[str] = "d2"
    paper: ClassVar[str] = "D2 Pruning, arXiv 2310.07931"

    difficulty: Literal["gradnorm", "loss"] = Field(
        "gradnorm", description="what is difficult: the gradient norm averaged over the checkpoints, or the last loss"
    )
    neighbours: int = Field(10, ge=1, description="nearest rows that each row is joined to")
    forward: float = Field(1.0, ge=0, allow_inf_nan=False, description="how fast a neighbour's difficulty fades")
    reverse: float = Field(1.0, ge=0, allow_inf_nan=False, description="how fast the penalty of neighbours fades")
    dimension: int = Field(512, ge=8, description="numbers a row is projected to for finding its neighbours")

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        scores = row_losses(features, "last") if self.difficulty == "loss" else row_gradient_norms(features, "average")
        with progress("neighbours", 1) as advance:
            near, cosines = nearest_neighbours(unit_sketch(features.average(), self.dimension, seed), self.neighbours)
            advance(1)
        squares = 2 - 2 * cosines.astype(np.float64)
        joined, fading = (np.exp(-rate * squares) * (near >= 0) for rate in (self.forward, self.reverse))
        x = scores + (joined * scores[near]).sum(axis=1)
        indices, values = pick_with_messages(x, near, fading, budget)
        diagnostics = {"difficulty_mean": float(scores.mean()), "difficulty_mean_chosen": float(scores[indices].mean())}
        return self._selection(features, indices, columns={"score": values}, diagnostics=diagnostics)


def pick_with_messages(
    x: np.ndarray, near: np.ndarray, fading: np.ndarray, budget: int
) -> tuple[np.ndarray, np.ndarray]:
    """Take the largest, of equal ones the lowest index; lower its neighbours by `fading` times its value; again.

    Args:
        x: (n,) values at first; near: (n, m) neighbours, −1 for none; fading: (n, m).

    Returns:
        indices (budget,) in order of choice, and the value that each had when it was chosen.
    """
    x = x.copy()
    open_rows = np.ones(len(x), dtype=bool)
    heap = [(-value, row) for row, value in enumerate(x.tolist())]
    heapq.heapify(heap)
    chosen: list[int] = []
    values: list[float] = []
    while len(chosen) < budget:
        value, row = heapq.heappop(heap)
        if not open_rows[row] or -value != x[row]:
            continue  # an older value of this row
        open_rows[row] = False
        chosen.append(row)
        values.append(-value)
        for other, share in zip(near[row].tolist(), fading[row].tolist(), strict=True):
            if other >= 0 and open_rows[other]:
                x[other] -= share * x[row]
                heapq.heappush(heap, (-float(x[other]), other))
    return np.array(chosen, dtype=np.int64), np.array(values)
