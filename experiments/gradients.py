"""Which gradients are selected from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Adam's direction with its momentum for the pool's rows, plain gradients for the target's
PUBLISHED: dict[str, Any] = {"preconditioner": "adam", "momentum": True, "target_preconditioner": "sgd"}
EXPLAINED = (
    "- Gradients: *as published*, Adam's directions with their momentum for the pool's rows and plain gradients for "
    "the target's; *no-momentum*, the directions without it; *no-momentum-both*, the target's rows made in this way "
    "too, as pursuit now does for `gtp` and `omp`; *sgd*, plain gradients for both; *less*, divided as in LESS' "
    "released code, with momentum; *256-numbers* and *signs*, as pursuit does now, to d = 256 or with one bit a number."
)
OTHER_GRADIENTS: dict[str, dict[str, Any]] = {
    "default": {"momentum": False, "target_preconditioner": "auto"},  # pursuit's own
    "no-momentum": {"momentum": False},
    "sgd": {"preconditioner": "sgd"},
    "less": {"preconditioner": "less"},
    "no-momentum-both": {"momentum": False, "target_preconditioner": "same"},
    "256-numbers": {"momentum": False, "target_preconditioner": "auto", "dimension": 256},
    "256-tensorsketch": {
        "momentum": False,
        "target_preconditioner": "auto",
        "dimension": 256,
        "projection": "tensorsketch",
    },
    "256-directions": {"momentum": False, "target_preconditioner": "auto", "dimension": 256, "directions": 0.25},
    "256-factored": {"momentum": False, "target_preconditioner": "auto", "dimension": 256, "projection": "factored"},
    "signs": {"momentum": False, "target_preconditioner": "auto", "dtype": "bits"},
}
OTHER_GRADIENTS["1024-tensorsketch"] = {**OTHER_GRADIENTS["256-tensorsketch"], "dimension": 1024}
PROJECTION_SEEDS = (1, 2)  # beside 0
OTHER_GRADIENTS |= {
    f"{kind}-seed{seed}": {**OTHER_GRADIENTS[kind], "seed": seed}
    for kind in ("256-numbers", "256-tensorsketch", "256-directions")
    for seed in PROJECTION_SEEDS
}
ALIKE = {"default": "no-momentum", "no-momentum-both": "no-momentum"}  # only the target's rows differ


def features_by(gradients: str, features: Mapping[str, Any]) -> dict[str, Any]:
    """An experiment's settings of features, by these gradients; "" are the published ones.

    Raises:
        SystemExit: there are no such gradients.
    """
    if gradients and gradients not in OTHER_GRADIENTS:
        raise SystemExit(f"{gradients}: no such gradients; there are {', '.join(OTHER_GRADIENTS)}.")
    return {**features, **PUBLISHED, **OTHER_GRADIENTS.get(gradients, {})}


def run_folder(out: Path, gradients: str) -> Path:
    """Where a run of these gradients stands; begun with the pool's rows of one whose target alone is another."""
    folder = out / "-".join(filter(None, ["run", gradients]))
    alike = out / f"run-{ALIKE.get(gradients, gradients)}"
    if alike.exists() and not folder.exists():
        shutil.copytree(alike, folder, ignore=shutil.ignore_patterns("selections", "targets"))
    return folder
