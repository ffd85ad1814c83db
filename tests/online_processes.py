"""Run by two processes: trainings with batch selection under DDP, whose results each writes to a file of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from transformers import Trainer

from online_trainers import MODELS, Recording, train
from pursuit.online import OptBatch, RandomBatch

SETTINGS: dict[str, Any] = {"max_steps": 4, "gradient_accumulation_steps": 2, "logging_steps": 2}


def outcome(trainer: Any) -> dict[str, Any]:
    """What the ranks are compared by."""
    selector, seen = trainer.batch_selection, trainer.seen
    scales = selector._moment.scales(1e-8, torch.device("cpu")) if isinstance(selector, OptBatch) else None
    return {
        "orders": [choice.order.tolist() for _, choice in seen],
        "first_tokens": [batch["input_ids"][:, 0].tolist() for batch, _ in seen],
        "weights": _sums(trainer.model),
        "moment": None if scales is None else scales.double().sum().item(),
        "moment_steps": None if scales is None else selector._moment.steps,
        "logged": sum("batch_selection/kept" in entry for entry in trainer.state.log_history),
    }


def _sums(model: Any) -> list[float]:
    return [value.double().sum().item() for value in model.state_dict().values()]


def main(folder: Path) -> None:
    found: dict[str, Any] = {}
    for name in ("full", "lora"):
        trainer = train(
            folder / name, OptBatch(prune=0.5), MODELS[name](), kind=Recording, save_strategy="steps", save_steps=2,
            ddp_find_unused_parameters=False, **SETTINGS,
        )  # fmt: skip
        found[name] = outcome(trainer)
        again = train(
            folder / name, OptBatch(prune=0.5), MODELS[name](), kind=Recording,
            resume=str(folder / name / "checkpoint-2"), ddp_find_unused_parameters=False, **SETTINGS,
        )  # fmt: skip
        found[name + " resumed"] = outcome(again)
    found["random"] = outcome(train(folder, RandomBatch(prune=0.5), MODELS["full"](), kind=Recording, **SETTINGS))
    found["all"] = outcome(train(folder, OptBatch(prune=0.0), MODELS["full"](), kind=Recording, **SETTINGS))
    found["plain"] = {"weights": _sums(train(folder, None, MODELS["full"](), kind=Trainer, **SETTINGS).model)}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
