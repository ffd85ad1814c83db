"""Plain orthogonal matching pursuit of the mean gradient: GradMatch (arXiv 2103.00123)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pursuit.selectors.following import Following, Pursued
from pursuit.solvers.matching_pursuit import matching_pursuit
from pursuit.solvers.rows import RowMatrix

if TYPE_CHECKING:
    from pursuit.engine import Engine


class Omp(Following):
    """Rows added one by one, each the best for what the weighted sum so far leaves of the mean gradient.

    Orthogonal matching pursuit with non-negative weights, without clusters: GradMatch (arXiv 2103.00123, section 3),
    and the matching pursuit that GTP (arXiv 2410.16710) is compared with. Follows the target's mean where there is a
    target, the pool's otherwise. The goals (also several target sets and their quotas) and the features are those of
    `gtp` [ours]. When the rows chosen span no more dimensions, it starts again on the other rows [ours].

    Columns of the selection: `score` (inner product with the goal, divided by the goal's length) and, with several
    target sets, `target` (the place in the diagnostics' `targets` of the set that the row was chosen for).
    """

    name: ClassVar[str] = "omp"
    paper: ClassVar[str] = "GradMatch, arXiv 2103.00123"

    ridge: float = Field(0.0, ge=0, allow_inf_nan=False, description="ridge λ, for unit-norm features")
    tol: float = Field(1e-4, ge=0, allow_inf_nan=False, description="relative residual that ends a pass")

    def _pursue(self, rows: RowMatrix, goal: np.ndarray, budget: int, engine: Engine) -> Pursued:
        result = matching_pursuit(rows, goal, budget, ridge=self.ridge, tol=self.tol, memory_bytes=self.memory_bytes)
        facts = {
            "passes": result.passes.tolist(), "pass_steps": result.pass_steps.tolist(), "filled": result.filled,
        }  # fmt: skip
        return Pursued(result.indices, result.weights, result.residuals.tolist(), facts=facts)
