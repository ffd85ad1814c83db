"""How gradients are taken and how a model is trained on a choice: the same for every comparison on text games."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.gradients import features_by, run_folder
from experiments.textgames.data import TARGETS
from pursuit import Run
from pursuit.files import fingerprint
from pursuit.finetune import FineTune

TRAINING = FineTune(
    max_steps=32, batch_size=16, learning_rate=2e-3, schedule="linear", warmup_ratio=0.1, micro_batch_tokens=1024
)
RUN: dict[str, Any] = {
    "weights": ["*"], "max_length": 512, "device": "cpu", "dtype": "float32",
    "warmup": {"checkpoint_steps": [8, 16], "epochs": 1, "sample": 256, "learning_rate": 2e-3, "batch_size": 16,
               "micro_batch_tokens": 1024},
    "features": {"dimension": 2048, "batch_tokens": 1024},
}  # fmt: skip


def games_run(out: Path, data: Path, model: Path, gradients: str = "", **changed: Any) -> Run:
    """The pool's features by these gradients (experiments/gradients.py), the published ones where none is named.

    `changed`: settings that another run has, which stands in a folder of its own.
    """
    targets = [f"{kind}={data / f'target-{kind}.jsonl'}" for kind in TARGETS]
    features = features_by(gradients, RUN["features"])
    settings = {**RUN, "features": features, **changed}
    folder = out / f"run-{gradients}-{fingerprint([changed])[:8]}" if changed else run_folder(out, gradients)
    return Run(
        folder, **settings, model=str(model),
        pool=str(data / "pool.jsonl"), target=targets,
    )  # fmt: skip


def held_out(data: Path, kinds: Sequence[str], file: str = "eval") -> list[str]:
    """Files of a comparison's held-out rows, a family a kind; `file` "games" has games to be played."""
    return [f"{kind}={data / f'{file}-{kind}.jsonl'}" for kind in kinds]
