"""One training, by transformers' Trainer.

What is ours: one item of the Trainer's data set is the whole batch of one optimizer step, which `training_step` cuts
into micro batches by tokens; and everything that a step depends on is a pure function of (seed, step) and of the
weights and the optimizer's state before it, so that a training resumed from safetensors alone ends with the same bits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.optimization import get_scheduler

from pursuit.batches import EncodedRows, collate, labelled, plan_batches
from pursuit.devices import deterministic, forbidden_as_random, free_cached_memory, out_of_memory
from pursuit.errors import DataError, ModelError, SettingsError
from pursuit.gradients.losses import token_losses
from pursuit.progress import progress, say
from pursuit.training.choosing import BatchSelection, Chosen, Remembers, choose, row_losses
from pursuit.training.plan import BatchPlan, generator
from pursuit.training.recorder import Recorder, not_finite
from pursuit.training.surroundings import own_randomness, quiet_transformers


class TrainingSettings(Protocol):
    """What the recipes of a warm-up and of fine-tuning both say."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    @property
    def max_grad_norm(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Task:
    """What is trained on what, and how.

    Attributes:
        name: what it is called in messages.
        encoded: the rows.
        plan: which of them each step trains on.
        settings: of the optimizer and its schedule.
        optimizer: transformers' name of it.
        weights: (len(encoded),) float64 factors of the rows' losses; None for all 1.
        autocast: data type in which the model computes; None for that of its weights.
        batch_selection: chooses, of each step's rows, those that are trained on; None for all.
    """

    name: str
    encoded: EncodedRows
    plan: BatchPlan
    settings: TrainingSettings
    optimizer: str = "adamw_torch"
    weights: np.ndarray | None = None
    autocast: torch.dtype | None = None
    batch_selection: BatchSelection | None = None


def train(model: nn.Module, task: Task, recorder: Recorder) -> None:
    """Train from step `recorder.begun_at` to the plan's last step; `recorder` restores and saves."""
    device = next(model.parameters()).device
    plan = task.plan
    plan.start = recorder.begun_at
    if plan.start:
        say(f"{task.name}: going on after step {plan.start} of {plan.last_step}")
    config = cast(Any, model).config
    was_training, used_cache = model.training, config.use_cache
    try:
        with (
            quiet_transformers(), deterministic(device), own_randomness(device),
            progress(task.name, plan.last_step, "steps", done=plan.start) as recorder.advance,
        ):  # fmt: skip
            PlannedTrainer(model, _arguments(task, recorder.folder, device), task, recorder).train()
    finally:
        model.train(was_training)
        config.use_cache = used_cache


class _Arguments(TrainingArguments):
    """The Trainer's settings, leaving the model on the device where it is."""

    @property
    def place_model_on_device(self) -> bool:
        return False


def _arguments(task: Task, folder: Path, device: torch.device) -> TrainingArguments:
    settings = task.settings
    arguments = _Arguments(
        output_dir=str(folder), use_cpu=device.type == "cpu", seed=settings.seed % 2**32, max_steps=task.plan.last_step,
        per_device_train_batch_size=1, gradient_accumulation_steps=1, optim=task.optimizer,
        learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1], adam_epsilon=settings.eps, max_grad_norm=settings.max_grad_norm,
        save_strategy="no", logging_strategy="no", eval_strategy="no", report_to="none", disable_tqdm=True,
        remove_unused_columns=False, bf16=False, fp16=False, dataloader_pin_memory=False, log_level="error",
    )  # fmt: skip
    if arguments.world_size > 1:
        raise ModelError(f"The {task.name} runs in one process; start it without torchrun or accelerate launch.")
    arguments._n_gpu = min(1, arguments.n_gpu)  # several visible GPUs must not split the batch behind our back
    return arguments


class PlannedTrainer(Trainer):
    """transformers' Trainer whose batch is one optimizer step's rows, cut into micro batches by padded tokens."""

    def __init__(self, model: nn.Module, args: TrainingArguments, task: Task, recorder: Recorder) -> None:
        super().__init__(model=model, args=args, train_dataset=task.plan, callbacks=[recorder])
        self.remove_callback(PrinterCallback)
        if task.batch_selection is not None:
            self.add_callback(_Observer(self, task.batch_selection))
        self.accelerator.device_placement = False  # the model stays where it was loaded
        self.task, self.recorder = task, recorder
        self.shape: tuple[int, ...] = (0, 0)  # rows and tokens of the micro batch in the model

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(self.task.plan, batch_size=None, shuffle=False)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().create_optimizer(*args, **kwargs)
        except (ImportError, ValueError, RuntimeError) as error:  # a package or a setting that it needs is missing
            raise SettingsError(f"optimizer {self.task.optimizer!r} cannot be used here: {error}") from error

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the whole planned run, although training may stop before its end."""
        if self.lr_scheduler is None:
            plan = self.task.plan
            self.lr_scheduler = get_scheduler(
                self.task.settings.schedule, cast(torch.optim.Optimizer, optimizer or self.optimizer),
                num_warmup_steps=plan.rising_steps, num_training_steps=plan.planned_steps,
            )  # fmt: skip
        return self.lr_scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # not reported

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Gradient of the mean loss over the response tokens of one batch; halves micro batches if memory runs out."""
        step = self.state.global_step
        model.train()
        chosen: Chosen | None = None
        while True:
            try:
                chosen = chosen or self._chosen(model, inputs["rows"].numpy())
                _seed_step(self.task.settings.seed, step)
                loss = self._accumulate(model, chosen)
                break
            except (RuntimeError, MemoryError) as error:
                too_large = out_of_memory(error)
                if not too_large and not forbidden_as_random(error):
                    raise
            model.zero_grad()
            if too_large:
                self._halve_micro_batches(step)
            else:
                torch.use_deterministic_algorithms(True, warn_only=True)
        if not np.isfinite(loss):
            raise ModelError(not_finite(self.task.name, step + 1, f"the loss ({loss})"))
        self.recorder.losses.append(loss)
        return torch.tensor(loss, device=self.args.device)

    def _chosen(self, model: nn.Module, rows: np.ndarray) -> Chosen:
        task, selection = self.task, self.task.batch_selection
        if selection is None:
            return Chosen(rows, None if task.weights is None else task.weights[rows])
        selection.at(self.state.global_step, task.plan.last_step)
        at_once, longest = self.recorder.micro_batch_tokens, int(task.encoded.lengths[rows].max())
        self.shape = (min(len(rows), max(1, at_once // longest)), longest)
        with self.precision():
            chosen = choose(selection, model, task.encoded, rows, task.weights, at_once)
        self.recorder.chosen(selection.last.figures())
        return chosen

    def _accumulate(self, model: nn.Module, chosen: Chosen) -> float:
        """Σ w_i ℓ_it / n, over all response tokens t of all rows i of the step, n of them."""
        encoded, rows, device = self.task.encoded, chosen.rows, next(model.parameters()).device
        place = {int(row): number for number, row in enumerate(rows)}
        cut = plan_batches(rows, encoded.lengths, self.recorder.micro_batch_tokens)
        parts = [(part, batch, n) for part in cut if (n := labelled(batch := collate(encoded, part)))]
        learnt = sum(count for *_, count in parts)
        if learnt == 0:
            raise DataError(
                f"the rows {rows.tolist()[:10]} of a {self.task.name} batch have no response token to learn from."
            )
        mean, selection = 0.0, self.task.batch_selection
        for part, batch, _ in parts:
            self.shape = tuple(batch["input_ids"].shape)
            with self.precision():
                losses, places = token_losses(model, {name: tensor.to(device) for name, tensor in batch.items()})
            if isinstance(selection, Remembers):
                selection.remember(np.array(part), row_losses(losses, places))
            if chosen.factors is not None:
                factors = torch.from_numpy(chosen.factors[[place[row] for row in part]]).to(losses)
                losses = losses * factors[places.nonzero()[:, 0]]
            loss = losses.sum() / (chosen.tokens or learnt)
            self.accelerator.backward(loss)
            mean += float(loss.detach())
        self.recorder.trained_on(len(rows), int(encoded.lengths[rows].sum()), learnt)
        return mean

    def precision(self) -> AbstractContextManager[Any]:
        """In which the model computes."""
        dtype = self.task.autocast
        return nullcontext() if dtype is None else torch.autocast(self.args.device.type, dtype)

    def _halve_micro_batches(self, step: int) -> None:
        free_cached_memory()
        name, (rows, length) = self.task.name, self.shape
        if rows == 1:
            raise ModelError(
                f"{name} step {step + 1}: memory does not suffice for one example of {length} tokens. "
                "Use bfloat16, a smaller maximum length, a smaller LoRA rank or a smaller model."
            )
        self.recorder.micro_batch_tokens = rows * length // 2
        say(f"{name}: out of memory; going on with {self.recorder.micro_batch_tokens} tokens at once")


class _Observer(TrainerCallback):
    """Shows the batch selector the gradient that the optimizer is about to use."""

    def __init__(self, trainer: PlannedTrainer, selection: BatchSelection) -> None:
        self.trainer, self.selection = trainer, selection

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with self.trainer.precision():
            self.selection.observe(kwargs["model"])


def _seed_step(seed: int, step: int) -> None:
    """Dropout masks of a step follow from (seed, step) alone, so no generator state has to be stored."""
    torch.manual_seed(int(generator(seed, "step", step).integers(2**63)))
