"""Plain orthogonal matching pursuit of the mean gradient: GradMatch (arXiv 2103.00123)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pursuit.selectors.base import Selector
from pursuit.selectors.gtp import check_goal, checkpoint_shares, goal_scores
from pursuit.selectors.selection import Selection
from pursuit.selectors.stacked import stacked
from pursuit.solvers.matching_pursuit import matching_pursuit
from pursuit.solvers.rows import DEFAULT_MEMORY_BYTES

if TYPE_CHECKING:
    from pursuit.features import Features


class Omp(Selector):
    """Rows added one by one, each the best for what the weighted sum so far leaves of the mean gradient.

    Orthogonal matching pursuit with non-negative weights, without clusters: GradMatch (arXiv 2103.00123, section 3),
    and the matching pursuit that GTP (arXiv 2410.16710) is compared with. Follows the target's mean where there is a
    target, the pool's otherwise. The goal and the features are those of `gtp` [ours]. When the rows chosen span no more
    dimensions, it starts again on the other rows [ours].

    Columns of the selection: `score` (inner product with the goal, divided by the goal's length).
    """

    name: ClassVar[str] = "omp"
    paper: ClassVar[str] = "GradMatch, arXiv 2103.00123"
    uses_target: ClassVar[bool] = True

    in_domain: bool = Field(False, description="follow the pool's mean also where there is a target")
    subspace: int = Field(512, ge=1, description="directions kept of each checkpoint; all, where there are no more")
    sample: int = Field(20_000, ge=1, description="random rows of the pool that the directions are found from")
    checkpoints: Literal["equal", "learning-rate"] = Field("equal", description="how checkpoints are weighted")
    ridge: float = Field(0.0, ge=0, allow_inf_nan=False, description="ridge λ, for unit-norm features")
    tol: float = Field(1e-4, ge=0, allow_inf_nan=False, description="relative residual that ends a pass")
    memory_bytes: int = Field(
        DEFAULT_MEMORY_BYTES, ge=1 << 20, description="bound on the memory of the projected rows, in bytes (beyond it "
        "they lie in a temporary file); the choice does not depend on it",
    )  # fmt: skip

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        target = None if self.in_domain else target
        with stacked(
            features, target, dimension=self.subspace, sample=self.sample, seed=seed, memory_bytes=self.memory_bytes,
            shares=checkpoint_shares(features, self.checkpoints),
        ) as trajectory:  # fmt: skip
            check_goal(trajectory.goal)
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
            "goal": "pool" if target is None else "target",
            "goal_kept_by_subspaces": trajectory.kept,
            "warnings": [],
        }
        columns = {"score": scores}
        return self._selection(features, result.indices, result.weights, columns=columns, diagnostics=diagnostics)
