"""Short trainings of tiny models with and without batch selection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from pursuit.online import BatchSelectionMixin
from tiny import tiny_model, tiny_tokenizer


class Selecting(BatchSelectionMixin, Trainer):
    pass


class Recording(Selecting):
    """Notes every candidate batch and what was kept of it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: list[tuple[dict[str, torch.Tensor], Any]] = []

    def _kept(self, selector: Any, sample: Any) -> Any:
        candidates = {name: value.clone() for name, value in sample.items()}
        kept = super()._kept(selector, sample)
        self.seen.append((candidates, selector.last))
        return kept


class Watched:
    """Notes the shape of each micro batch that reaches the model with a graph."""

    def __init__(self, model: nn.Module) -> None:
        self.sizes: list[int] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, inputs: Any, arguments: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            self.sizes.append(len(arguments["input_ids"]))


def rows(count: int = 24, seed: int = 0, same_length: int | None = None) -> datasets.Dataset:
    """Random rows; the first third of each is a prompt."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(8, 20, count) if same_length is None else [same_length] * count
    ids = [generator.integers(3, 500, length).tolist() for length in lengths]
    labels = [[-100] * (len(row) // 3) + row[len(row) // 3 :] for row in ids]
    return datasets.Dataset.from_dict({"input_ids": ids, "labels": labels})


def train(
    folder: Path, selection: Any, model: nn.Module | None = None, *, kind: Any = Selecting, resume: Any = None,
    callbacks: Any = (), data: Any = None, **settings: Any,
) -> Any:  # fmt: skip
    """A short training; without `selection` by the unmodified trainer."""
    model = tiny_model("llama", tie_word_embeddings=False) if model is None else model
    values = {
        "per_device_train_batch_size": 4, "max_steps": 4, "learning_rate": 1e-2, "logging_steps": 2, "seed": 1,
        "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True, "log_level": "error",
    }  # fmt: skip
    arguments = TrainingArguments(output_dir=str(folder), **{**values, **settings})
    more = {"batch_selection": selection} if issubclass(kind, Selecting) else {}
    collator = DataCollatorForSeq2Seq(tiny_tokenizer(), padding=True)
    trainer = kind(
        model=model, args=arguments, train_dataset=rows() if data is None else data, data_collator=collator,
        callbacks=list(callbacks), **more,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def lora(**more: Any) -> nn.Module:
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    return get_peft_model(tiny_model("llama", **more), config)


def frozen_head() -> nn.Module:
    model = tiny_model("llama", tie_word_embeddings=False)
    model.lm_head.requires_grad_(False)
    return model


MODELS = {
    "full": lambda: tiny_model("llama", tie_word_embeddings=False), "tied": lambda: tiny_model("gemma2"),
    "frozen head": frozen_head, "lora": lora, "dropout": lambda: tiny_model("gpt2"),
}  # fmt: skip
