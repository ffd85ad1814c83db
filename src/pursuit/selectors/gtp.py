"""GTP: rows whose weighted gradients follow the whole trajectory, chosen together (arXiv 2410.16710)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pursuit.progress import progress
from pursuit.selectors import comparison
from pursuit.selectors.following import Following, Pursued
from pursuit.selectors.quotas import interleaved
from pursuit.selectors.stacked import Trajectory
from pursuit.solvers.compressive_pursuit import CompressiveResult, compressive_pursuit
from pursuit.solvers.partitions import partitioned_pursuit
from pursuit.solvers.rows import RowMatrix

if TYPE_CHECKING:
    from pursuit.engine import Engine

SIMILAR = "the same number of most similar rows"


class Gtp(Following):
    """Few rows whose weighted gradients follow the target's (or the pool's) along the whole warm-up, chosen jointly.

    Each checkpoint's features are projected to a subspace of their own and put side by side; one non-negative weight a
    row serves all checkpoints. With a target its mean is followed, without one the mean of the pool. Solved by
    `pursuit.solvers.compressive_pursuit` (GTP, arXiv 2410.16710).

    [ours], because the paper leaves it open: the subspaces are uncentred principal directions, found from a random
    sample of the pool (and the target's rows, at equal weight); unit rows; equal weights of the checkpoints; the
    refinement of the support (`refine="none"` is the published loop); what happens beyond the number of rows that a
    target can hold; several target sets, each with its share of the budget: in the order in which they are named, each
    by a pursuit of its own over the rows that the sets before it left.

    Columns of the selection: `pass` (0 is the joint choice, −1 filled up), `score` (inner product with the goal,
    divided by the goal's length) and, with several target sets, `target` (the place in the diagnostics' `targets` of
    the set that the row was chosen for; `weight` is from that set's pursuit).
    """

    name: ClassVar[str] = "gtp"
    paper: ClassVar[str] = "GTP, arXiv 2410.16710"

    refine: Literal["swaps", "none"] = Field(
        "swaps", description="none is the published loop, which ends with a larger residual"
    )
    iterations: int = Field(10, ge=1, description="of the published loop, or rounds of swaps")
    partitions: int = Field(
        1, ge=1, description="1 chooses among all rows; with more, first in each of so many parts of the pool and then "
        "among what they chose: cheaper where the rows lie on many machines, and a little farther from the goal",
    )  # fmt: skip
    tol: float = Field(1e-6, ge=0, allow_inf_nan=False, description="relative residual at which a pass ends")

    def _pursue(self, rows: RowMatrix, goal: np.ndarray, budget: int, engine: Engine) -> Pursued:
        pursue: Callable[..., CompressiveResult] = compressive_pursuit
        if self.partitions > 1:
            pursue = partial(partitioned_pursuit, partitions=self.partitions)
        with progress("pursuit", budget) as advance:
            result = pursue(
                rows, goal, budget, refine=self.refine, iterations=self.iterations, tol=self.tol,
                memory_bytes=self.memory_bytes, map=engine.map, advance=advance,
            )  # fmt: skip
        number = np.searchsorted(result.passes, np.arange(budget), side="right") - 1
        number[budget - result.filled :] = -1
        return Pursued(
            result.indices, result.weights, result.residuals.tolist(), {"pass": number.astype(np.int64)},
            _facts(result), _warnings(result, len(goal), budget),
        )  # fmt: skip

    def _compared(self, trajectory: Trajectory, pursued: Sequence[Pursued], curves: Sequence[str]) -> dict[str, Any]:
        """How the rows most similar to the goals would have done, and the near-duplicates among them."""
        shares = np.array([len(found.indices) for found in pursued])
        similar = comparison.most_similar(trajectory.rows, trajectory.goals, shares)
        residuals, skipped = {}, []
        most = min(comparison.FITTED, self.memory_bytes // (8 * trajectory.rows.shape[1]))
        for curve, found, top, goal in zip(curves, pursued, similar, trajectory.goals, strict=True):
            if len(top) > most:
                skipped.append(f"{curve}: more than {most:,} rows are not fitted for comparison")
            elif len(top):
                residual = comparison.smallest_residual(np.asarray(trajectory.rows[top], np.float64), goal)
                residuals[curve.replace(self.name, SIMILAR, 1)] = [residual] * len(found.curve)
        order = interleaved(shares)
        chosen = np.concatenate([found.indices for found in pursued])[order]
        mine = comparison.near_pairs(trajectory.rows, chosen)
        theirs = comparison.near_pairs(trajectory.rows, np.concatenate(similar)[order])
        return {
            "residuals": residuals,
            "near_duplicate_pairs": {"gtp": len(mine), "most similar": len(theirs)},
            "near_duplicate_examples": {
                "gtp": comparison.pairs_shown(mine),
                "most similar": comparison.pairs_shown(theirs, chosen),
            },
            "near_duplicates_among": min(len(chosen), comparison.PAIRED),
            "not_compared": skipped,
        }


def _facts(result: CompressiveResult) -> dict[str, Any]:
    return {
        "residual": result.residual,
        "rank": result.rank,
        "passes": result.passes.tolist(),
        "pass_iterations": result.pass_iterations.tolist(),
        "support_changes": result.changes.tolist(),
        "filled": result.filled,
        "seconds": {part: round(seconds, 3) for part, seconds in result.seconds.items()},
    }


def _warnings(result: CompressiveResult, dimension: int, budget: int) -> list[str]:
    if result.rank >= budget:
        return []
    if not result.rank:
        return [
            f"No row points towards the goal, so every weight is 0 and the {budget:,} chosen are those that point away "
            "from it least. Are pool and target what they should be?"
        ]
    further = budget - result.rank - result.filled
    rest = [f"{further:,} from further passes over the other rows"] * (further > 0)
    rest += [f"{result.filled:,} at weight 0, the most similar of the rest"] * (result.filled > 0)
    rows = "1 row follows" if result.rank == 1 else f"{result.rank:,} rows follow"
    return [
        f"{rows} the goal as closely as any number can: nothing was found that more rows with non-negative weights "
        f"gain in {dimension:,} dimensions. The rest of the budget of {budget:,}: {' and '.join(rest)}. "
        "A smaller budget, more checkpoints or a larger `subspace` would fit better."
    ]
