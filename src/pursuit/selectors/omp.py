"""Plain orthogonal matching pursuit of the mean gradient: GradMatch (arXiv 2103.00123)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pursuit.selectors.following import Following, goal_scores
from pursuit.selectors.selection import Selection
from pursuit.solvers.matching_pursuit import matching_pursuit

if TYPE_CHECKING:
    from pursuit.features import Features


class Omp(Following):
    """Rows added one by one, each the best for what the weighted sum so far leaves of the mean gradient.

    Orthogonal matching pursuit with non-negative weights, without clusters: GradMatch (arXiv 2103.00123, section 3),
    and the matching pursuit that GTP (arXiv 2410.16710) is compared with. Follows the target's mean where there is a
    target, the pool's otherwise. The goal and the features are those of `gtp` [ours]. When the rows chosen span no more
    dimensions, it starts again on the other rows [ours].

    Columns of the selection: `score` (inner product with the goal, divided by the goal's length).
    """

    name: ClassVar[str] = "omp"
    paper: ClassVar[str] = "GradMatch, arXiv 2103.00123"

    ridge: float = Field(0.0, ge=0, allow_inf_nan=False, description="ridge λ, for unit-norm features")
    tol: float = Field(1e-4, ge=0, allow_inf_nan=False, description="relative residual that ends a pass")
    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        with self._trajectory(features, target, seed) as trajectory:
            result = matching_pursuit(
                trajectory.rows, trajectory.goal, budget, ridge=self.ridge, tol=self.tol,
                memory_bytes=self.memory_bytes,
            )  # fmt: skip
            scores = goal_scores(trajectory, result.indices, self.memory_bytes)
        diagnostics = {
            "residuals": {"omp": result.residuals.tolist()},
            "passes": result.passes.tolist(),
            "pass_steps": result.pass_steps.tolist(),
            "filled": result.filled,
            "goal": self._goal(target),
            "goal_kept_by_subspaces": trajectory.kept,
            "warnings": [],
        }
        columns = {"score": scores}
        return self._selection(features, result.indices, result.weights, columns=columns, diagnostics=diagnostics)
