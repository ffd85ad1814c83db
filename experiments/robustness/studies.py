"""All studies by name."""

from __future__ import annotations

from collections.abc import Callable

from experiments.robustness.games import (
    budgets,
    iterations,
    models,
    optimizers,
    projection_seeds,
    projections,
    schedules,
    warmups,
    weighted,
)
from experiments.robustness.instructions import mixed_exact, mixed_models, natural_instructions
from experiments.robustness.larger import larger_pool
from experiments.robustness.playing import played_larger, played_reader, tagcos_ablations
from experiments.robustness.study import Folders, Study

STUDIES: dict[str, Callable[[Folders], Study]] = {
    "models": models, "optimizers": optimizers, "schedules": schedules, "warmups": warmups, "budgets": budgets,
    "iterations": iterations, "weighted": weighted, "projections": projections, "projection-seeds": projection_seeds,
    "played-larger": played_larger, "played-reader": played_reader, "tagcos-ablations": tagcos_ablations,
    "mixed-exact": mixed_exact, "mixed-models": mixed_models, "natural-instructions": natural_instructions,
    "larger-pool": larger_pool,
}  # fmt: skip
