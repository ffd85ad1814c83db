"""Run by two processes: trainings with batch selection under DDP, whose results each writes to a file of its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import distributed as dist
from torch.nn.functional import cross_entropy
from transformers import Trainer

from online_trainers import MODELS, Recording, train
from pursuit.batches import IGNORED
from pursuit.online import InfoBatch, OptBatch, RandomBatch
from pursuit.online.scoring import EXAMPLE_IDS
from pursuit.online.trainer import WEIGHTS

# before, a checkpoint is read back to the device "cpu:0", which torch does not know
GOES_ON = Version(transformers.__version__) >= Version("5.18")
SETTINGS: dict[str, Any] = {"max_steps": 4, "gradient_accumulation_steps": 2, "logging_steps": 2}


class OnePass(Recording):
    """InfoBatch's weights on the examples' losses within one forward and backward pass: what the mix-in must equal."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """The plain trainer's, with the loss below."""
        self.ids = inputs.pop(EXAMPLE_IDS)
        self.factors = inputs.pop(WEIGHTS, torch.ones(len(self.ids)))
        return Trainer.training_step(self, model, inputs, num_items_in_batch)

    def compute_loss(self, model: Any, inputs: Any, *_: Any, num_items_in_batch: Any = None, **__: Any) -> Any:
        """Σ weight · Σ cross-entropy / labels of all candidates of all processes."""
        logits, labels = (
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits,
            inputs["labels"],
        )
        losses = cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none")
        sums, counts = losses.sum(dim=1), (labels[:, 1:] != IGNORED).sum(dim=1)
        self.batch_selection.remember(self.ids, sums / counts)
        return (sums * self.factors).sum() / num_items_in_batch * self.accelerator.num_processes


def outcome(trainer: Any) -> dict[str, Any]:
    """What the ranks are compared by."""
    selector, seen = trainer.batch_selection, trainer.seen
    scales = selector._moment.scales(1e-8, torch.device("cpu")) if isinstance(selector, OptBatch) else None
    return {
        "orders": [choice.order.tolist() for _, choice in seen],
        "factors": [[] if choice.weights is None else choice.weights.tolist() for _, choice in seen],
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
        if GOES_ON:
            again = train(
                folder / name, OptBatch(prune=0.5), MODELS[name](), kind=Recording,
                resume=str(folder / name / "checkpoint-2"), ddp_find_unused_parameters=False, **SETTINGS,
            )  # fmt: skip
            found[name + " resumed"] = outcome(again)
    found["random"] = outcome(train(folder, RandomBatch(prune=0.5), MODELS["full"](), kind=Recording, **SETTINGS))
    for name, kind in (("info", Recording), ("info in one pass", OnePass)):
        selector = InfoBatch(prune=0.5, anneal=0)
        found[name] = outcome(train(folder, selector, MODELS["full"](), kind=kind, **SETTINGS | {"max_steps": 8}))
    found["all"] = outcome(train(folder, OptBatch(prune=0.0), MODELS["full"](), kind=Recording, **SETTINGS))
    found["plain"] = {"weights": _sums(train(folder, None, MODELS["full"](), kind=Trainer, **SETTINGS).model)}
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # threads of torch's own have aborted a process at its very end, when all of this was done


if __name__ == "__main__":
    main(Path(sys.argv[1]))
