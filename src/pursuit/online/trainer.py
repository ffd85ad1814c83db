"""Batch selection inside transformers' Trainer and everything built on it, such as TRL's SFTTrainer."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from pursuit.batches import IGNORED
from pursuit.errors import SelectionError, SettingsError
from pursuit.online.base import BatchSelector
from pursuit.online.batch import take
from pursuit.online.head import Head, check_head, find_head, head_module, language_model
from pursuit.online.infobatch import InfoBatch
from pursuit.online.numbered import NumberedRows, NumberingCollator
from pursuit.online.registry import batch_selection as make_selector
from pursuit.online.registry import load_state, save_state
from pursuit.online.row_norms import score
from pursuit.online.scoring import EXAMPLE_IDS, labelled, undisturbed
from pursuit.progress import say

if TYPE_CHECKING:
    from transformers import Trainer as _Trainer
else:
    _Trainer = object

PREFIX = "batch_selection/"
SUMMED = ("dropped", "seconds", "flops_spent", "flops_saved")  # since the last log; the others are means a micro batch
WEIGHTS = "batch_selection_weights"


class BatchSelectionMixin(_Trainer):
    """Lets a trainer learn, at each step, from the part of its batch that a selector keeps.

        class Trainer(BatchSelectionMixin, trl.SFTTrainer): ...
        Trainer(..., batch_selection=OptBatch(prune=0.3, strata=3)).train()

    `per_device_train_batch_size` is the candidate batch B; with gradient accumulation each micro batch is a candidate
    batch of its own. All micro batches of a step are chosen from before its first backward pass, so that the loss is a
    mean over the kept tokens (`num_items_in_batch`) as it is over all of them without selection. In several processes
    each keeps as many of its own candidates. The selector's state lies with the trainer's checkpoints, in
    `batch_selection.safetensors`. What it did is in the trainer's log under `batch_selection/`.

    Args:
        batch_selection: a BatchSelector, or its name for its default settings; None trains as without the mix-in.

    Raises:
        SelectionError: packing or padding-free batches, FSDP, DeepSpeed, several GPUs in one process, or a data set
            without row numbers for a selector that remembers examples.
    """

    def __init__(self, *args: Any, batch_selection: BatchSelector | str | None = None, **kwargs: Any) -> None:
        if isinstance(batch_selection, str):
            batch_selection = make_selector(batch_selection)
        if batch_selection is not None and not isinstance(batch_selection, BatchSelector):
            raise SettingsError(
                f"batch_selection must be a selector such as OptBatch(prune=0.3), or its name, not {batch_selection!r}."
            )
        if batch_selection is not None:
            _refuse_packing(kwargs.get("args", args[1] if len(args) > 1 else None))  # before data are prepared for it
        self.batch_selection = batch_selection
        self._figures: dict[str, list[float]] = defaultdict(list)
        self._scoring_flops = 0.0
        self._head_checked = False
        super().__init__(*args, **kwargs)
        if batch_selection is not None:
            _refuse_packing(self.args)
            self._refuse_sharding()
            self.add_callback(_Observer(self))

    def _refuse_sharding(self) -> None:
        reason = (
            "FSDP" if self.is_fsdp_enabled else "DeepSpeed" if self.is_deepspeed_enabled
            else "several GPUs in one process (DataParallel)" if self.args.n_gpu > 1 else None
        )  # fmt: skip
        if reason:
            raise SelectionError(
                f"Batch selection reads the whole lm_head and its gradient, which {reason} does not leave in one "
                "place. Start one process a GPU with accelerate launch (DDP)."
            )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The kept part of the next batches, and how many labels the loss is a mean over."""
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        selector = self.batch_selection
        if selector is None:
            return samples, items
        selector.at(self.state.global_step, self.state.max_steps)
        kept = [self._kept(selector, sample) for sample in samples]
        if isinstance(selector, InfoBatch):
            return kept, items  # weights make up for what is left out: still a mean over all candidates
        return kept, self._get_num_items_in_batch(kept, device)

    def _kept(self, selector: BatchSelector, sample: Any) -> Any:
        inputs = self._prepare_inputs(sample)
        with self.accelerator.autocast():
            keep = selector(self._plain_model(), inputs)
        choice = selector.last
        assert choice is not None
        for name, value in choice.figures().items():
            self._figures[name].append(value)
        self._scoring_flops += choice.scoring_flops
        whole = len(keep) == len(inputs["input_ids"])
        part = sample if whole else take(inputs, keep)
        if isinstance(selector, InfoBatch):
            part = dict(part)
            if choice.weights is not None:
                part[WEIGHTS] = torch.from_numpy(choice.weights)
        elif EXAMPLE_IDS in part:
            del part[EXAMPLE_IDS]
        return part

    def _plain_model(self) -> nn.Module:
        assert isinstance(self.model, nn.Module)  # not None once the trainer is made
        return self.model

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The trainer's own step; examples of unlike weights one after the other, which adds their gradients."""
        selector = self.batch_selection
        if not isinstance(selector, InfoBatch):
            return super().training_step(model, inputs, num_items_in_batch)
        ids, weights = inputs.pop(EXAMPLE_IDS), inputs.pop(WEIGHTS, torch.ones(len(inputs["input_ids"])))
        apart = weights.unique().tolist()
        if self.args.world_size > 1:
            apart = sorted(set(gather_object(apart)))
        if num_items_in_batch is None and apart != [1]:
            raise SelectionError(
                f"{selector.name} weighs examples, for which the model's loss must take num_items_in_batch; that of "
                f"{type(language_model(model)).__name__} does not."
            )
        total = torch.zeros((), device=self.args.device)
        for weight in apart:
            rows = torch.nonzero(weights == weight).squeeze(1)
            if not len(rows):  # another process has such examples, and each backward pass is one of all processes
                total = total + super().training_step(model, _without_labels(inputs), num_items_in_batch)
                continue
            part = take(inputs, rows)
            items = num_items_in_batch if weight == 1 else num_items_in_batch / weight
            with _hidden_states(model) as seen:
                total = total + super().training_step(model, dict(part), items)
            with self.accelerator.autocast():
                tokens = labelled(seen[0], self._prepare_inputs(part)["labels"])
                losses = score(self._checked_head(part["input_ids"]), tokens, selector.chunk).examples
            selector.remember(ids[rows.to(ids.device)], losses)
        return total

    def _checked_head(self, ids: Tensor) -> Head:
        """The model's head; the first time compared with what the model makes of a few tokens."""
        model = self._plain_model()
        head = find_head(model)
        if not self._head_checked:
            with undisturbed(model):
                check_head(model, head, ids[0].to(head.weight.device))
            self._head_checked = True
        return head

    def get_train_dataloader(self) -> DataLoader:
        """The trainer's own, with row numbers beside the examples where the selector remembers them."""
        selector = self.batch_selection
        if selector is None or not selector.needs_ids:
            return super().get_train_dataloader()
        rows, collator = self.train_dataset, self.data_collator
        if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
            raise SelectionError(
                f"{selector.name} remembers examples, so the data set must have numbered rows; a stream "
                f"({type(rows).__name__}) has none. Use a data set with a length."
            )
        self._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        if EXAMPLE_IDS not in columns:
            columns.append(EXAMPLE_IDS)
        self.train_dataset, self.data_collator = NumberedRows(rows), NumberingCollator(collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = rows, collator

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's own log, with what the selection did since the last one."""
        if self._figures and "loss" in logs:
            for name, values in self._figures.items():
                logs[PREFIX + name] = float(np.sum(values) if name in SUMMED else np.mean(values))
            self._figures.clear()
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        """The trainer's count for the kept, and what scoring the candidates took."""
        scoring, self._scoring_flops = self._scoring_flops, 0.0
        return super().floating_point_ops(inputs) + int(scoring)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.batch_selection is not None:
            save_state(self.batch_selection, self._state_path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.batch_selection is None or checkpoint is None:
            return
        path = self._state_path(checkpoint)
        if path.exists():
            load_state(self.batch_selection, path)
        else:
            say(f"{path.name} is not in {path.parent}: batch selection starts afresh, as that run had none.")

    def _state_path(self, folder: str) -> Path:
        part = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return Path(folder) / f"batch_selection{part}.safetensors"


class _Observer(TrainerCallback):
    """Shows the selector the gradient that the optimizer is about to use."""

    def __init__(self, trainer: BatchSelectionMixin) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._figures.clear()
        if state.global_step == 0 and self.trainer.batch_selection is not None:
            self.trainer.batch_selection.reset()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        if trainer.batch_selection is not None:
            if not args.max_grad_norm:  # clipping has divided float16's gradients by the loss' scale already
                trainer.accelerator.unscale_gradients(trainer.optimizer)
            with trainer.accelerator.autocast():
                trainer.batch_selection.observe(trainer._plain_model())


def _without_labels(inputs: Any) -> dict[str, Any]:
    """The first example with nothing to learn: a pass over it adds nothing to any gradient."""
    part = dict(take(inputs, np.arange(1)))
    return {**part, "labels": torch.full_like(part["labels"], IGNORED)}


def _refuse_packing(args: Any) -> None:
    for name in ("packing", "padding_free"):
        if getattr(args, name, False):
            raise SelectionError(
                f"Batch selection keeps or drops examples one by one, and {name}=True puts several into one row. "
                f"Set {name}=False."
            )


@contextlib.contextmanager
def _hidden_states(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the head is given, without graph; where a trainer makes its loss without a call of the head, what
    the layers below it return. To be read afterwards.
    """
    seen: list[Tensor] = []
    below: list[Tensor] = []

    def given(module: nn.Module, arguments: Any) -> None:
        seen.append(arguments[0].detach())

    def returned(module: nn.Module, arguments: Any, output: Any) -> None:
        below.append((output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]).detach())

    hooks = (
        head_module(model).register_forward_pre_hook(given),
        language_model(model).base_model.register_forward_hook(returned),
    )
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
        if not seen:
            seen += below
