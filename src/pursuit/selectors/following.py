"""What `gtp` and `omp` share: rows that follow a goal, the mean of the target or of the pool, along the trajectory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from pursuit.selectors.base import Selector
from pursuit.selectors.stacked import Trajectory, stacked
from pursuit.solvers.rows import DEFAULT_MEMORY_BYTES, gathered_dots

if TYPE_CHECKING:
    from pursuit.features import Features


class Following(Selector):
    """The settings of the goal and of the subspaces (GTP, arXiv 2410.16710)."""

    uses_target: ClassVar[bool] = True

    in_domain: bool = Field(False, description="follow the pool's mean also where there is a target")
    subspace: int = Field(512, ge=1, description="directions kept of each checkpoint; all, where there are no more")
    sample: int = Field(20_000, ge=1, description="random rows of the pool that the directions are found from")
    checkpoints: Literal["equal", "learning-rate"] = Field("equal", description="how checkpoints are weighted")
    memory_bytes: int = Field(
        DEFAULT_MEMORY_BYTES, ge=1 << 20, description="bound on the memory of the projected rows, in bytes (beyond it "
        "they lie in a temporary file); the choice does not depend on it",
    )  # fmt: skip

    @contextmanager
    def _trajectory(self, features: Features, target: Features | None, seed: int) -> Iterator[Trajectory]:
        """Pool and goal in the same coordinates; ValueError where there is nothing to follow."""
        equal = np.ones(features.num_checkpoints)  # β_t, with the mean 1
        shares = equal if self.checkpoints == "equal" else features.weights * features.num_checkpoints
        with stacked(
            features, None if self.in_domain else target, dimension=self.subspace, sample=self.sample, seed=seed,
            memory_bytes=self.memory_bytes, shares=shares,
        ) as trajectory:  # fmt: skip
            _check_goal(trajectory.goal)
            yield trajectory

    def _goal(self, target: Features | None) -> str:
        return "pool" if target is None or self.in_domain else "target"


def _check_goal(goal: np.ndarray) -> None:
    """Raise ValueError where there is nothing to follow."""
    if not np.isfinite(goal).all():
        raise ValueError("NaN or infinity in the features of the pool or of the target")
    if not goal.any():
        raise ValueError("the mean that is to be followed is zero: the features are all zero, or cancel")


def goal_scores(trajectory: Trajectory, indices: np.ndarray, memory_bytes: int) -> np.ndarray:
    """⟨row, goal⟩ / ‖goal‖ of chosen rows."""
    return gathered_dots(trajectory.rows, indices, trajectory.goal, memory_bytes) / np.linalg.norm(trajectory.goal)
