"""The rows, how gradients are taken, how a model is trained on a choice: the same for every comparison on this pool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.fetch import fetch_model

from experiments.gradients import features_by, run_folder
from experiments.pools.mixed import make_mixed
from pursuit import Run
from pursuit.finetune import FineTune

FAMILIES = (
    "object_counting", "hyperbaton", "implicatures", "strategyqa", "social_support", "tense",
    "unit_conversion/unit_addition_same", "spell_backward", "anachronisms", "reasoning_about_colored_objects",
)  # fmt: skip
TRAINING = FineTune(
    max_steps=12, batch_size=8, learning_rate=1e-3, schedule="linear", warmup_ratio=0.1, micro_batch_tokens=512
)
OTHERS = ("stratified", "kcenter", "craig", "omp(in_domain=true)", "longest", "perplexity", "gradnorm")
# the last third of the layers: half of the time of all of them, as nothing below needs a gradient
LAYERS = [f"layers.{layer}.self_attn.{part}_proj" for layer in range(20, 30) for part in "qkvo"]
RUN: dict[str, Any] = {
    "chat_template": "chatml", "max_length": 256, "device": "cpu", "dtype": "float32",
    "lora": {"rank": 16, "alpha": 64, "targets": LAYERS},
    "warmup": {"checkpoint_steps": [6, 12], "epochs": 1, "sample": 96, "learning_rate": 1e-3, "batch_size": 8,
               "warmup_ratio": 0.1, "micro_batch_tokens": 512},
    "features": {"dimension": 8192, "dtype": "float32", "batch_tokens": 512, "shard_rows": 64},
}  # fmt: skip


@dataclass(frozen=True)
class Draw:
    """Which rows: see `make_mixed`."""

    rows: int = 600
    eval_rows: int = 10
    target_rows: int = 5
    families: tuple[str, ...] = FAMILIES
    max_characters: int = 140
    seed: int = 0


def mixed_data(out: Path, draw: Draw | None = None) -> Path:
    """Write pool, target and held-out rows; skipped where they stand."""
    data = out / "data"
    if not (data / "about.json").exists():
        make_mixed(data, **vars(draw or Draw()))
    return data


def mixed_run(out: Path, data: Path, gradients: str, **changed: Any) -> Run:
    """The pool's features by these gradients (experiments/gradients.py), the published ones where none is named.

    `changed`: settings of the run.
    """
    features = features_by(gradients, RUN["features"])
    return Run(
        run_folder(out, gradients), **{**RUN, "features": features, **changed}, model=str(fetch_model()),
        pool=str(data / "pool.jsonl"), target=str(data / "target.jsonl"),
    )  # fmt: skip
