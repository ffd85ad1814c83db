"""The warm-up's training, by transformers' Trainer.

What is ours: one item of the Trainer's data set is the whole batch of one optimizer step, which `training_step` cuts
into micro batches by tokens; and everything that a step depends on is a pure function of (seed, step) and of the
weights and moments before it, so that a run resumed from safetensors alone ends with the same bits.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.optimization import get_scheduler
from transformers.utils import logging as transformers_logging

from pursuit.batches import EncodedRows, collate, labelled, plan_batches
from pursuit.errors import DataError, ModelError
from pursuit.gradients.losses import token_losses
from pursuit.gradients.precondition import AdamState
from pursuit.progress import progress, say
from pursuit.trainable import trainable_parameters
from pursuit.warmup.plan import Plan, generator
from pursuit.warmup.trajectory import (
    KEPT,
    RECOVERY,
    Checkpoint,
    check_same_parameters,
    copy_weights,
    folder_name,
    read_moments,
    remove_recovery,
    write_checkpoint,
)

SAVING_SHARE = 20  # a recovery checkpoint is written at most once in this many times the seconds that writing takes


def train(model: nn.Module, encoded: EncodedRows, folder: Path, plan: Plan, point: Checkpoint | None) -> None:
    """Train from `point` (None: from the start) to the plan's last checkpoint, writing checkpoints into `folder`."""
    device = next(model.parameters()).device
    plan.start = 0 if point is None else point.step
    if point is not None:
        say(f"warm-up: going on after step {point.step} of {plan.last_step}")
    config = cast(Any, model).config
    was_training, used_cache = model.training, config.use_cache
    try:
        with (
            _quiet_transformers(), _deterministic(device), _own_randomness(device),
            progress("warm-up", plan.last_step, "steps", done=plan.start) as advance,
        ):  # fmt: skip
            recorder = Recorder(folder, plan, point, advance)
            WarmUpTrainer(model, _arguments(plan, folder, device), encoded, recorder).train()
    finally:
        model.train(was_training)
        config.use_cache = used_cache


class _Arguments(TrainingArguments):
    """The Trainer's settings, leaving the model on the device where it is."""

    @property
    def place_model_on_device(self) -> bool:
        return False


def _arguments(plan: Plan, folder: Path, device: torch.device) -> TrainingArguments:
    settings = plan.settings
    arguments = _Arguments(
        output_dir=str(folder), use_cpu=device.type == "cpu", seed=settings.seed % 2**32, max_steps=plan.last_step,
        per_device_train_batch_size=1, gradient_accumulation_steps=1, optim="adamw_torch",
        learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1], adam_epsilon=settings.eps, max_grad_norm=settings.max_grad_norm,
        save_strategy="no", logging_strategy="no", eval_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, bf16=False, fp16=False, dataloader_pin_memory=False, log_level="error",
    )  # fmt: skip
    if arguments.world_size > 1:
        raise ModelError("The warm-up runs in one process; start it without torchrun or accelerate launch.")
    arguments._n_gpu = min(1, arguments.n_gpu)  # several visible GPUs must not split the batch behind our back
    return arguments


class Recorder(TrainerCallback):
    """Restores the state before the first step and writes checkpoints after steps, from safetensors alone."""

    def __init__(self, folder: Path, plan: Plan, point: Checkpoint | None, advance: Callable[[float], None]) -> None:
        self.folder, self.plan, self.point, self.advance = folder, plan, point, advance
        self.micro_batch_tokens = plan.settings.micro_batch_tokens if point is None else point.micro_batch_tokens
        begun = None if point is None or point.step in plan.checkpoint_steps else point  # in the midst of an interval
        self.losses: list[float] = [] if begun is None else list(begun.losses)
        self.learning_rates: list[float] = [] if begun is None else list(begun.learning_rates)
        self.saved_at, self.saving_took = time.monotonic(), 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.point is None:
            return
        model, optimizer, scheduler = kwargs["model"], kwargs["optimizer"], kwargs["lr_scheduler"]
        copy_weights(model, self.point)
        moments, parameters = read_moments(self.point), trainable_parameters(model)
        check_same_parameters(self.point.folder, parameters, moments.exp_avg)
        check_same_parameters(self.point.folder, parameters, moments.exp_avg_sq)
        for name, parameter in parameters.items():
            optimizer.state[parameter] = {
                "step": torch.tensor(float(moments.step)),
                "exp_avg": moments.exp_avg[name].to(parameter.device),
                "exp_avg_sq": moments.exp_avg_sq[name].to(parameter.device),
            }
        state.global_step = self.point.step
        scheduler.last_epoch = self.point.step
        for group, base, share in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * share(self.point.step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.learning_rates.append(float(kwargs["optimizer"].param_groups[0]["lr"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(1)
        kept = state.global_step in self.plan.checkpoint_steps
        waited = time.monotonic() - self.saved_at
        pause = max(self.plan.settings.recovery_seconds, SAVING_SHARE * self.saving_took)
        if kept or waited >= pause:
            self._save(KEPT if kept else RECOVERY, state.global_step, kwargs["model"], kwargs["optimizer"])

    def _save(self, kind: str, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        begun = time.monotonic()
        settings, parameters = self.plan.settings, trainable_parameters(model)
        first, second = (_moment(parameters, optimizer, key) for key in ("exp_avg", "exp_avg_sq"))
        for name, parameter in parameters.items():
            if not all(bool(torch.isfinite(tensor).all()) for tensor in (parameter, first[name], second[name])):
                raise ModelError(_not_finite(step, f"a weight or moment of {name}"))
        folder = self.folder / folder_name(kind, step)
        checkpoint = Checkpoint(
            folder=folder, step=step, learning_rates=tuple(self.learning_rates), losses=tuple(self.losses),
            examples_seen=self.plan.examples_seen(step), micro_batch_tokens=self.micro_batch_tokens,
            betas=settings.betas, eps=settings.eps, sha256={},
        )  # fmt: skip
        write_checkpoint(checkpoint, parameters, AdamState(first, second, step, settings.betas, settings.eps))
        remove_recovery(self.folder, keep=folder)
        if kind == KEPT:
            self.losses, self.learning_rates = [], []
        self.saved_at = time.monotonic()
        self.saving_took = self.saved_at - begun


def _moment(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, key: str
) -> dict[str, torch.Tensor]:
    """One of Adam's moments by name; zero for a parameter that no gradient has reached."""
    found = {name: optimizer.state.get(parameter, {}).get(key) for name, parameter in parameters.items()}
    return {name: torch.zeros_like(parameters[name]) if m is None else m for name, m in found.items()}


class WarmUpTrainer(Trainer):
    """transformers' Trainer whose batch is one optimizer step's rows, cut into micro batches by padded tokens."""

    def __init__(self, model: nn.Module, args: TrainingArguments, encoded: EncodedRows, recorder: Recorder) -> None:
        super().__init__(model=model, args=args, train_dataset=recorder.plan, callbacks=[recorder])
        self.remove_callback(PrinterCallback)
        self.accelerator.device_placement = False  # the model stays where it was loaded
        self.plan, self.encoded, self.recorder = recorder.plan, encoded, recorder
        self.shape: tuple[int, ...] = (0, 0)  # rows and tokens of the micro batch in the model

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.plan, batch_size=None, shuffle=False)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the whole planned run, although training stops at the last checkpoint."""
        if self.lr_scheduler is None:
            self.lr_scheduler = get_scheduler(
                self.plan.settings.schedule, cast(torch.optim.Optimizer, optimizer or self.optimizer),
                num_warmup_steps=self.plan.rising_steps, num_training_steps=self.plan.planned_steps,
            )  # fmt: skip
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # not reported

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradient of the mean loss over the response tokens of one batch; halves micro batches if memory runs out."""
        step, rows = self.state.global_step, inputs["rows"].numpy()
        model.train()
        while True:
            _seed_step(self.plan.settings.seed, step)
            try:
                loss = self._accumulate(model, rows)
                break
            except RuntimeError as error:
                out_of_memory = should_reduce_batch_size(error)
                if not out_of_memory and not _forbidden_as_random(error):
                    raise
            model.zero_grad()
            if out_of_memory:
                self._halve_micro_batches(step)
            else:
                torch.use_deterministic_algorithms(True, warn_only=True)
        if not np.isfinite(loss):
            raise ModelError(_not_finite(step + 1, f"the loss ({loss})"))
        self.recorder.losses.append(loss)
        return torch.tensor(loss, device=self.args.device)

    def _accumulate(self, model: nn.Module, rows: np.ndarray) -> float:
        device = next(model.parameters()).device
        cut = plan_batches(rows, self.encoded.lengths, self.recorder.micro_batch_tokens)
        batches = [(batch, count) for part in cut if (count := labelled(batch := collate(self.encoded, part)))]
        total = sum(count for _, count in batches)
        if total == 0:
            raise DataError(f"the rows {rows.tolist()[:10]} of a warm-up batch have no response token to learn from.")
        mean = 0.0
        for batch, _ in batches:
            self.shape = tuple(batch["input_ids"].shape)
            losses, _ = token_losses(model, {name: tensor.to(device) for name, tensor in batch.items()})
            loss = losses.sum() / total
            self.accelerator.backward(loss)
            mean += float(loss.detach())
        return mean

    def _halve_micro_batches(self, step: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        rows, length = self.shape
        if rows == 1:
            raise ModelError(
                f"warm-up step {step + 1}: memory does not suffice for one example of {length} tokens. "
                "Use bfloat16, a smaller maximum length, a smaller LoRA rank or a smaller model."
            )
        self.recorder.micro_batch_tokens = rows * length // 2
        say(f"warm-up: out of memory; going on with {self.recorder.micro_batch_tokens} tokens at once")


def _not_finite(step: int, what: str) -> str:
    return (
        f"warm-up step {step}: {what} is not a finite number. Try float32 or bfloat16 instead of float16, a smaller "
        "learning rate, or look for broken rows in the pool (`pursuit inspect`)."
    )


def _seed_step(seed: int, step: int) -> None:
    """Dropout masks of a step follow from (seed, step) alone, so no generator state has to be stored."""
    torch.manual_seed(int(generator(seed, "step", step).integers(2**63)))


@contextlib.contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Leave the caller's random states as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextlib.contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a GPU, choose kernels that give the same bits each time. (A CPU's do, for the same number of threads.)"""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory = cast(Any, torch.utils.deterministic)
    filled, memory.fill_uninitialized_memory = memory.fill_uninitialized_memory, False  # slow, and only finds bugs
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = filled


def _forbidden_as_random(error: RuntimeError) -> bool:
    """Whether torch refused an operation that it has no deterministic kernel for; such a model trains without."""
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    return strict and "determinis" in str(error)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
