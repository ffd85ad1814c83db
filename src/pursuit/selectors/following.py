"""What `gtp` and `omp` share: rows that follow goals, the means of target sets or of the pool, along the trajectory."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pursuit.selectors.base import Selector
from pursuit.selectors.quotas import Quotas, check_quotas, interleaved, quota_shares, target_parts
from pursuit.selectors.raw_rows import with_raw_rows
from pursuit.selectors.selection import Selection
from pursuit.selectors.stacked import Trajectory, stacked
from pursuit.solvers.apportion import summing_to
from pursuit.solvers.rows import DEFAULT_MEMORY_BYTES, RowMatrix, RowView, gathered_dots

if TYPE_CHECKING:
    from pursuit.engine import Engine
    from pursuit.store.features import Features


@dataclass(frozen=True)
class Pursued:
    """What the pursuit of one goal chose.

    Attributes:
        indices: (k,) int64 rows, in order of choice.
        weights: (k,) float64.
        curve: relative residual after every iteration.
        columns: more (k,) numbers about the rows.
        facts: JSON-able facts about the pursuit.
        warnings: what the user should know.
    """

    indices: np.ndarray
    weights: np.ndarray
    curve: list[float]
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Goals:
    """Which goals are followed: their names, the target's rows of each, and the rows of the pool that each gets.

    One goal (the pool's mean, or that of the whole target) has no name and no parts.
    """

    names: list[str]
    parts: list[np.ndarray] | None
    shares: np.ndarray


class Following(Selector):
    """The settings of the goals and of the subspaces (GTP, arXiv 2410.16710).

    With several target sets (sources of the target's rows) each one's mean is followed with its share of the budget
    [ours]: in the order in which the sets are named, each by a pursuit of its own over the rows that the sets before it
    left, whose weights are scaled to add up to that share. The subspaces are the same for all.
    """

    in_domain: bool = Field(False, description="follow the pool's mean also where there is a target")
    targets: Literal["each", "mean"] = Field(
        "each", description="with several target sets, follow the mean of each with its share of the budget, or one "
        "mean of all their rows (as published)",
    )  # fmt: skip
    quotas: Quotas = Field(
        None, description="shares of the budget by target set, such as mmlu=2,bbh=1; equal ones if not given"
    )
    rows: Literal["unit", "raw"] = Field(
        "unit", description="rows of unit norm, or as long as the projected gradients are"
    )
    subspace: int = Field(512, ge=1, description="directions kept of each checkpoint; all, where there are no more")
    sample: int = Field(20_000, ge=1, description="random rows of the pool that the directions are found from")
    checkpoints: Literal["equal", "learning-rate"] = Field("equal", description="how checkpoints are weighted")
    memory_bytes: int = Field(
        DEFAULT_MEMORY_BYTES, ge=1 << 20, description="bound on the memory of the projected rows, in bytes (beyond it "
        "they lie in a temporary file); the choice does not depend on it",
    )  # fmt: skip

    @property
    def follows_target(self) -> bool:
        """Chosen rows are to add up to it."""
        return True

    @property
    def uses_target(self) -> bool:
        """Unless the pool's mean is to be followed in any case."""
        return not self.in_domain

    @model_validator(mode="after")
    def _quotas_have_a_use(self) -> Self:
        if self.quotas is not None and self.in_domain:
            raise ValueError("quotas share the budget among target sets, and in_domain follows none of them")
        if self.quotas is not None and self.targets == "mean":
            raise ValueError('quotas share the budget among target sets, and targets="mean" follows one mean of all')
        return self

    def check_target_sets(self, names: Sequence[str]) -> None:
        """Quotas have to name them all, and nothing else."""
        check_quotas(self.name, self.quotas, names)

    @abstractmethod
    def _pursue(self, rows: RowMatrix, goal: np.ndarray, budget: int, engine: Engine) -> Pursued:
        """Choose `budget` of the rows that follow one goal."""

    def _compared(self, trajectory: Trajectory, pursued: Sequence[Pursued], curves: Sequence[str]) -> dict[str, Any]:
        """More diagnostics: what another choice would have been. `curves` names the residual of each pursuit."""
        return {}

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        target = None if self.in_domain else target
        goals = self._goals(target, budget)
        with self._trajectory(features, target, goals, seed) as trajectory:
            pursued = self._one_after_another(trajectory, goals, features.engine)
            curves = [self.name, *(f"{self.name}: {name}" for name in goals.names)][bool(goals.names) :]
            compared = self._compared(trajectory, pursued, curves)
            scores = [
                goal_scores(trajectory.rows, found.indices, goal, self.memory_bytes)
                for found, goal in zip(pursued, trajectory.goals, strict=True)
            ]
        residuals = {curve: found.curve for curve, found in zip(curves, pursued, strict=True)}
        diagnostics = {
            **self._facts(trajectory, goals, pursued), "goal": "pool" if target is None else "target",
            "dimensions": trajectory.dimensions, **compared,
            "residuals": {**residuals, **compared.get("residuals", {})}, "warnings": _warned(goals, pursued),
        }  # fmt: skip
        for message in diagnostics["warnings"]:
            warnings.warn(message, stacklevel=3)
        columns = {name: np.concatenate([found.columns[name] for found in pursued]) for name in pursued[0].columns}
        columns["score"] = np.concatenate(scores)
        indices, weights = (np.concatenate([getattr(f, name) for f in pursued]) for name in ("indices", "weights"))
        if goals.names:
            weights = np.concatenate(
                [summing_to(f.weights, share) for f, share in zip(pursued, goals.shares, strict=True)]
            )
            columns["target"] = np.repeat(np.arange(len(goals.names)), goals.shares)
            order = interleaved(goals.shares)
            indices, weights = indices[order], weights[order]
            columns = {name: values[order] for name, values in columns.items()}
        return self._selection(features, indices, weights, columns=columns, diagnostics=diagnostics)

    def _goals(self, target: Features | None, budget: int) -> _Goals:
        one = _Goals([], None, np.array([budget]))
        if target is None:
            check_quotas(self.name, self.quotas, [])
            return one
        if self.targets == "mean":
            return one
        names, parts = target_parts(target)
        shares = quota_shares(self.name, self.quotas, names, budget)
        return _Goals(names, parts, shares) if len(names) > 1 else one

    @contextmanager
    def _trajectory(
        self, features: Features, target: Features | None, goals: _Goals, seed: int
    ) -> Iterator[Trajectory]:
        """Pool and goals in the same coordinates; ValueError where there is nothing to follow."""
        equal = np.ones(features.num_checkpoints)  # β_t, with the mean 1
        shares = equal if self.checkpoints == "equal" else features.weights * features.num_checkpoints
        if self.rows == "raw":
            features, target = with_raw_rows(features), None if target is None else with_raw_rows(target)
        with stacked(
            features, target, dimension=self.subspace, sample=self.sample, seed=seed, memory_bytes=self.memory_bytes,
            shares=shares, parts=goals.parts,
        ) as trajectory:  # fmt: skip
            for name, goal in zip(goals.names or [""], trajectory.goals, strict=True):
                _check_goal(goal, name)
            yield trajectory

    def _one_after_another(self, trajectory: Trajectory, goals: _Goals, engine: Engine) -> list[Pursued]:
        """The pursuit of each goal over the rows that those before it left."""
        if not goals.names:
            return [self._pursue(trajectory.rows, trajectory.goals[0], int(goals.shares[0]), engine)]
        left = np.ones(trajectory.rows.shape[0], dtype=bool)
        pursued = []
        for goal, share in zip(trajectory.goals, goals.shares, strict=True):
            open_rows = np.flatnonzero(left)
            found = self._pursue(engine.spread(RowView(trajectory.rows, open_rows)), goal, int(share), engine)
            found = replace(found, indices=open_rows[found.indices])
            left[found.indices] = False
            pursued.append(found)
        return pursued

    @staticmethod
    def _facts(trajectory: Trajectory, goals: _Goals, pursued: Sequence[Pursued]) -> dict[str, Any]:
        facts = [
            {**found.facts, "goal_kept_by_subspaces": kept}
            for found, kept in zip(pursued, trajectory.kept, strict=True)
        ]
        if goals.parts is None:
            return facts[0]
        about = [
            {"target": name, "examples": len(part), "chosen": int(share), "residuals": found.curve, **fact}
            for name, part, share, found, fact in zip(
                goals.names, goals.parts, goals.shares, pursued, facts, strict=True
            )
        ]
        return {"targets": about}


def _warned(goals: _Goals, pursued: Sequence[Pursued]) -> list[str]:
    if not goals.names:
        return pursued[0].warnings
    empty = [name for name, share in zip(goals.names, goals.shares, strict=True) if not share]
    few = f"The budget of {goals.shares.sum():,} leaves no row for {len(empty)} of {len(goals.names)} target sets: "
    each = zip(goals.names, pursued, strict=True)
    return [few + ", ".join(empty) + "."] * bool(empty) + [f"{name}: {text}" for name, f in each for text in f.warnings]


def _check_goal(goal: np.ndarray, name: str) -> None:
    """Raise ValueError where there is nothing to follow."""
    if not np.isfinite(goal).all():
        raise ValueError("NaN or infinity in the features of the pool or of the target")
    if not goal.any():
        of = f" of the target set {name!r}" if name else ""
        raise ValueError(f"the mean{of} that is to be followed is zero: the features are all zero, or cancel")


def goal_scores(rows: RowMatrix, indices: np.ndarray, goal: np.ndarray, memory_bytes: int) -> np.ndarray:
    """⟨row, goal⟩ / ‖goal‖ of chosen rows."""
    return gathered_dots(rows, indices, goal, memory_bytes) / np.linalg.norm(goal)
