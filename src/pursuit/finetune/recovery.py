"""Checkpoints of a fine-tuning while it runs, only to go on from, and its log.

    folder/recovery-0010/weights.safetensors    trainable parameters by name
                         state.safetensors      the optimizer's tensors, and the batch selector's
                         checkpoint.json        step, losses, …, SHA-256 of both; written last
    folder/log.jsonl                            a line a step

The newest whole one counts; the one before it goes when it stands.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from pursuit.batches import BATCH_TOKENS
from pursuit.errors import StoreError
from pursuit.files import full_disk_told, read_json, sha256_file, write_record, write_tensors, write_text
from pursuit.finetune.recipe import FineTune
from pursuit.models.trainable import trainable_parameters
from pursuit.training.choosing import BatchSelection
from pursuit.training.folder import (
    RECORD,
    RECOVERY,
    WEIGHTS,
    copy_weights,
    folder_name,
    has_digests,
    remove_recovery,
)
from pursuit.training.optimizer_state import optimizer_state, restore_optimizer
from pursuit.training.recorder import Recorder, check_finite
from pursuit.training.trainer import Task

STATE, LOG = "state.safetensors", "log.jsonl"
OF_OPTIMIZER, OF_SELECTOR = "optimizer.", "selector."  # beginnings of the tensors' names


class FineTuneRecorder(Recorder):
    """Goes on from the newest whole checkpoint in the folder, if there is one."""

    def __init__(self, folder: Path, task: Task, recipe: FineTune) -> None:
        self.point = _newest(folder)
        record: dict[str, Any] = {} if self.point is None else read_json(self.point / RECORD)
        super().__init__(
            folder, begun_at=record.get("step", 0), losses=record.get("losses", ()),
            micro_batch_tokens=record.get("micro_batch_tokens", recipe.micro_batch_tokens or BATCH_TOKENS),
            learning_rates=record.get("learning_rates", ()), pause_seconds=recipe.recovery_seconds,
        )  # fmt: skip
        self.task, self.record = task, record
        self.examples, self.tokens = record.get("examples", 0), record.get("tokens", 0)
        self.learnt_tokens, self.seconds_before = record.get("learnt_tokens", 0), record.get("seconds", 0.0)
        self.begun = time.monotonic()
        self.figures: Mapping[str, float] = {}
        self._cut_log()

    @property
    def seconds(self) -> float:
        """Spent in training, also by earlier starts up to the checkpoint gone on from."""
        return self.seconds_before + time.monotonic() - self.begun

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        assert self.point is not None  # the Recorder restores only what was begun
        self.restore_weights(model)
        stored = load_file(self.point / STATE)
        of = {
            kind: {name[len(kind) :]: tensor for name, tensor in stored.items() if name.startswith(kind)}
            for kind in (OF_OPTIMIZER, OF_SELECTOR)
        }
        restore_optimizer(optimizer, trainable_parameters(model), of[OF_OPTIMIZER], self.record["optimizer"])
        if self.task.batch_selection is not None:
            self.task.batch_selection.load(of[OF_SELECTOR])

    def restore_weights(self, model: nn.Module) -> None:
        """The trained weights alone, when only the result remained to be written."""
        assert self.point is not None
        copy_weights(self.point / WEIGHTS, trainable_parameters(model), load_file(self.point / WEIGHTS))

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        parameters = trainable_parameters(model)
        tensors, record = optimizer_state(optimizer, parameters)
        check_finite(self.task.name, step, {**parameters, **tensors})
        state = {OF_OPTIMIZER + name: tensor for name, tensor in tensors.items()}
        state |= {OF_SELECTOR + name: tensor for name, tensor in _selector_state(self.task.batch_selection).items()}
        folder = self.folder / folder_name(RECOVERY, step)
        (folder / RECORD).unlink(missing_ok=True)
        write_tensors(folder / WEIGHTS, parameters)
        write_tensors(folder / STATE, state)
        write_record(
            folder / RECORD,
            {
                "step": step, "losses": self.losses, "learning_rates": self.learning_rates, "examples": self.examples,
                "tokens": self.tokens, "learnt_tokens": self.learnt_tokens, "optimizer": record,
                "micro_batch_tokens": self.micro_batch_tokens, "seconds": self.seconds,
                "sha256": {file: sha256_file(folder / file) for file in (WEIGHTS, STATE)},
            },
        )  # fmt: skip
        remove_recovery(self.folder, keep=folder)

    def trained_on(self, examples: int, tokens: int, learnt_tokens: int) -> None:
        self.examples += examples
        self.tokens += tokens
        self.learnt_tokens += learnt_tokens

    def chosen(self, figures: Mapping[str, float]) -> None:
        self.figures = figures

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.begun_at + 1:  # rather now than after an hour
            optimizer_state(kwargs["optimizer"], trainable_parameters(kwargs["model"]))
        line = {
            "step": state.global_step, "epoch": round(state.global_step / self.task.plan.steps_per_epoch, 4),
            "loss": self.losses[-1], "learning_rate": self.learning_rates[-1], "examples": self.examples,
            "tokens": self.tokens, "seconds": round(self.seconds, 3),
        }  # fmt: skip
        if self.figures:
            line["batch_selection"] = {name: float(f"{value:.6g}") for name, value in self.figures.items()}
        with full_disk_told(self.folder / LOG), open(self.folder / LOG, "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        super().on_step_end(args, state, control, **kwargs)

    def _cut_log(self) -> None:
        """Leave out what was logged after the checkpoint gone on from, and a line torn in the middle."""
        path = self.folder / LOG
        lines = path.read_text("utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
        write_text(path, "".join(_whole(lines)[: self.begun_at]))


def _whole(lines: Iterable[str]) -> list[str]:
    return [line for line in lines if line.endswith("}\n")]


def _selector_state(selector: BatchSelection | None) -> dict[str, torch.Tensor]:
    return {} if selector is None else dict(selector.state())


def _newest(folder: Path) -> Path | None:
    """The checkpoint with the most steps that is whole."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob(f"{RECOVERY}-*"):
        try:
            record = read_json(path / RECORD)
            if has_digests(path, record["sha256"]):
                found.append((int(record["step"]), path))
        except (StoreError, KeyError, TypeError):
            continue  # not written to the end
    return max(found, default=(0, None))[1]


def is_begun(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return _newest(folder) is not None
