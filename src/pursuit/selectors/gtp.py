"""GTP: rows whose weighted gradients follow the whole trajectory, chosen together (arXiv 2410.16710)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pursuit.selectors.following import Following, goal_scores
from pursuit.selectors.selection import Selection
from pursuit.selectors.stacked import Trajectory
from pursuit.solvers.compressive_pursuit import CompressiveResult, compressive_pursuit
from pursuit.solvers.nnls import nnls
from pursuit.solvers.rows import gathered_dots

if TYPE_CHECKING:
    from pursuit.features import Features

COMPARED = 2000  # up to so many rows the most similar ones are fitted too, for comparison
NEAR = 0.95  # cosine from which two rows count as near-duplicates


class Gtp(Following):
    """Few rows whose weighted gradients follow the target's (or the pool's) along the whole warm-up, chosen jointly.

    Each checkpoint's features are projected to a subspace of their own and put side by side; one non-negative weight a
    row serves all checkpoints. With a target its mean is followed, without one the mean of the pool. Solved by
    `pursuit.solvers.compressive_pursuit` (GTP, arXiv 2410.16710).

    [ours], because the paper leaves it open: the subspaces are uncentred principal directions, found from a random
    sample of the pool (and the target's rows, at equal weight); unit rows; equal weights of the checkpoints; the
    refinement of the support (`refine="none"` is the published loop); what happens beyond the number of rows that a
    target can hold.

    Columns of the selection: `pass` (0 is the joint choice, −1 filled up), `score` (inner product with the goal,
    divided by the goal's length).
    """

    name: ClassVar[str] = "gtp"
    paper: ClassVar[str] = "GTP, arXiv 2410.16710"

    refine: Literal["swaps", "none"] = Field(
        "swaps", description="none is the published loop, which ends with a larger residual"
    )
    iterations: int = Field(10, ge=1, description="of the published loop, or rounds of swaps")
    tol: float = Field(1e-6, ge=0, allow_inf_nan=False, description="relative residual at which a pass ends")
    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        with self._trajectory(features, target, seed) as trajectory:
            result = compressive_pursuit(
                trajectory.rows, trajectory.goal, budget, refine=self.refine, iterations=self.iterations,
                tol=self.tol, memory_bytes=self.memory_bytes,
            )  # fmt: skip
            scores = goal_scores(trajectory, result.indices, self.memory_bytes)
            compared = _beside_top_k(trajectory, result, self.memory_bytes)
        warned = _warnings(result, len(trajectory.goal), budget)
        for message in warned:
            warnings.warn(message, stacklevel=3)
        number = np.searchsorted(result.passes, np.arange(budget), side="right") - 1
        number[budget - result.filled :] = -1
        diagnostics = {
            **compared, **_facts(result, trajectory), "goal": self._goal(target), "warnings": warned,
        }  # fmt: skip
        columns = {"pass": number.astype(np.int64), "score": scores}
        return self._selection(features, result.indices, result.weights, columns=columns, diagnostics=diagnostics)


def _facts(result: CompressiveResult, trajectory: Trajectory) -> dict[str, Any]:
    return {
        "residual": result.residual,
        "rank": result.rank,
        "passes": result.passes.tolist(),
        "pass_iterations": result.pass_iterations.tolist(),
        "support_changes": result.changes.tolist(),
        "filled": result.filled,
        "seconds": {part: round(seconds, 3) for part, seconds in result.seconds.items()},
        "dimensions": trajectory.dimensions,
        "goal_kept_by_subspaces": trajectory.kept,
    }


def _beside_top_k(trajectory: Trajectory, result: CompressiveResult, memory_bytes: int) -> dict[str, Any]:
    """The residual curve, and how the k rows most similar to the goal would have done."""
    curve = result.residuals.tolist()
    k = len(result.indices)
    if k > COMPARED:
        return {"residuals": {"gtp": curve}}
    n = trajectory.rows.shape[0]
    top = np.argsort(-gathered_dots(trajectory.rows, np.arange(n), trajectory.goal, memory_bytes), kind="stable")[:k]
    rows = np.asarray(trajectory.rows[top], np.float64)
    left = trajectory.goal - nnls(rows @ rows.T, rows @ trajectory.goal) @ rows
    residual = float(np.linalg.norm(left) / np.linalg.norm(trajectory.goal))
    chosen = np.asarray(trajectory.rows[result.indices], np.float64)
    return {
        "residuals": {"gtp": curve, "the same number of most similar rows": [residual] * len(curve)},
        "near_duplicate_pairs": {"gtp": _near_pairs(chosen), "most similar": _near_pairs(rows)},
    }


def _near_pairs(rows: np.ndarray) -> int:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms > 0, norms, 1)
    return int(np.count_nonzero(np.triu(unit @ unit.T >= NEAR, 1)))


def _warnings(result: CompressiveResult, dimension: int, budget: int) -> list[str]:
    if result.rank >= budget:
        return []
    further = budget - result.rank - result.filled
    rest = [f"{further:,} come from further passes over the other rows"] * (further > 0)
    rest += [f"{result.filled:,} are the most similar of the rest, at weight 0"] * (result.filled > 0)
    return [
        f"{result.rank:,} rows follow the goal as closely as any number can: non-negative weights on more rows gain "
        f"nothing in {dimension:,} dimensions. Of the budget of {budget:,}, {' and '.join(rest)}. "
        "A smaller budget, more checkpoints or a larger `subspace` would fit better."
    ]
