"""Fine-tuning on chosen rows."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from pursuit.batches import EncodedRows, usual_batch_tokens
from pursuit.errors import DataError, ModelError, SettingsError
from pursuit.finetune.recipe import FineTune
from pursuit.finetune.recovery import LOG, FineTuneRecorder, is_begun
from pursuit.finetune.result import (
    Finetuned,
    begin_record,
    finish_record,
    is_finished,
    peak_memory,
    read_record,
    reset_peak,
    write_model,
)
from pursuit.finetune.weights import check_weights, mean_weight
from pursuit.models.trainable import parameter_count, trainable_parameters
from pursuit.progress import say
from pursuit.selectors.selection import Selection
from pursuit.training.folder import RECOVERY, made_from_other, remove_recovery, rows_digest, weights_digest
from pursuit.training.plan import BatchPlan, steps_in_epoch
from pursuit.training.surroundings import in_float32
from pursuit.training.trainer import Task, train

if TYPE_CHECKING:
    from pursuit.online import BatchSelector

NAME = "fine-tuning"
FIRST_WEIGHTS = "first_weights"
OWN_LOOPS = ("lomo", "layerwise", "schedule_free")  # parts of names of optimizers that a plain step does not do


@dataclass(frozen=True)
class _Rows:
    """(n,) ascending rows that are trained on, and the weights of all rows, of mean 1; None for all 1."""

    indices: np.ndarray
    weights: np.ndarray | None


def finetune(
    model: nn.Module, rows: EncodedRows, folder: str | Path, recipe: FineTune | None = None, *,
    selection: Selection | None = None, weights: ArrayLike | None = None,
    batch_selection: BatchSelector | None = None, tokenizer: PreTrainedTokenizerBase | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> Finetuned:  # fmt: skip
    """Train the model's trainable parameters on rows, or on a selection of them.

    A finished training in `folder` is returned as it is. One that was killed goes on from its last checkpoint to the
    same bits as one that was not. Afterwards the model holds the trained weights.

    The loss of an optimizer step is the mean over the response tokens of its rows, Σ_i v_i Σ_t ℓ_it / n, with v = 1, or
    with `recipe.weighted` the row's weight, scaled so that the rows trained on have mean 1. Rows of weight 0 are left
    out. The order of the selection does not matter.

    Args:
        model: from `prepare_trainable`: a LoRA, an adapter, or weights of its own (["*"] for all of them). Its
            trainable parameters change in place.
        rows: the tokenised rows.
        folder: where the result goes, see `pursuit.finetune.result`; one process at a time.
        recipe: see `FineTune`.
        selection: train on these of the rows only.
        weights: (n,) of the rows, or of the selection's in its order, instead of the selection's own; used with
            `recipe.weighted`.
        batch_selection: leaves out part of each step's batch, see `pursuit.online`.
        tokenizer: saved beside the weights, so that the folder can be loaded alone.
        made_with: JSON-able facts that shaped model and rows, to be written down; a folder made with others is refused.

    Raises:
        StoreError: the folder holds a training with other settings, rows or first weights.
        ModelError: the loss is not a number, memory does not suffice for one row, or nothing is trainable.
        DataError: no rows, or a weight that is negative or no number; it names the row.
        SettingsError: weights without `recipe.weighted` or the other way round, or an optimizer that cannot be used.
    """
    recipe, folder = recipe or FineTune(), Path(folder)
    check_optimizer(recipe.optimizer)
    if not trainable_parameters(model):
        raise ModelError("The model has no trainable parameter; call prepare_trainable first.")
    autocast = _autocast(model, recipe)
    used = _rows(rows, recipe, selection, weights)
    made_from = describe(recipe, rows, used, batch_selection, made_with)
    _claim(folder, {**made_from, FIRST_WEIGHTS: weights_digest(trainable_parameters(model))})
    if is_finished(folder):
        done = Finetuned.load(folder)
        done.load_into(model)
        return done
    if absent := (len(rows) if selection is None else len(selection)) - len(used.indices):
        say(f"{NAME}: {absent:,} rows have weight 0 and are left out")
    if batch_selection is not None:
        batch_selection.reset()
    device = next(model.parameters()).device
    recipe = replace(recipe, micro_batch_tokens=recipe.micro_batch_tokens or usual_batch_tokens(device))
    plan = _plan(recipe, used.indices)
    task = Task(NAME, rows, plan, recipe, recipe.optimizer, used.weights, autocast, batch_selection)
    reset_peak(device)
    with in_float32(model):
        recorder = FineTuneRecorder(folder, task, recipe)
        if recorder.begun_at < plan.last_step:
            train(model, task, recorder)
        else:
            recorder.restore_weights(model)
    files = write_model(model, tokenizer, folder)
    done = Finetuned(
        folder=folder, adapter=isinstance(model, PeftModel), trained_parameters=parameter_count(model),
        rows=len(plan.rows), steps=plan.last_step, epochs=plan.last_step / plan.steps_per_epoch,
        losses=tuple(recorder.losses), examples=recorder.examples, tokens=recorder.tokens,
        learnt_tokens=recorder.learnt_tokens, seconds=recorder.seconds, peak_memory_bytes=peak_memory(device),
    )  # fmt: skip
    finish_record(done, files)
    remove_recovery(folder)
    return done


def finished(
    folder: str | Path, rows: EncodedRows, recipe: FineTune, *, selection: Selection | None = None,
    weights: ArrayLike | None = None, batch_selection: BatchSelector | None = None,
    made_with: Mapping[str, Any] | None = None,
) -> Finetuned | None:  # fmt: skip
    """The training in `folder` if it is finished, else None. To know that, no model need be loaded.

    Its first weights are not looked at: `made_with` must speak for the model.

    Raises:
        StoreError: it was made from something else.
    """
    if not is_finished(Path(folder)):
        return None
    record = read_record(Path(folder))
    made_from = describe(recipe, rows, _rows(rows, recipe, selection, weights), batch_selection, made_with)
    if (before := _but_first_weights(record["made_from"])) != made_from:
        raise made_from_other(Path(folder), NAME, before, made_from)
    return Finetuned.load(folder)


def check_optimizer(name: str) -> None:
    """SettingsError for what transformers does not know, needs a package that is not there, or a loop of its own."""
    known = [str(optimizer.value) for optimizer in OptimizerNames]
    usable = [other for other in known if not any(part in other for part in OWN_LOOPS)]
    if name in usable:
        try:
            Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(output_dir="unused", optim=name, use_cpu=True))
        except (ImportError, ValueError, RuntimeError) as error:
            raise SettingsError(f"optimizer {name!r} cannot be used here: {error}") from error
        return
    reason = "needs a training loop of its own" if name in known else "is not known"
    raise SettingsError(f"optimizer {name!r} {reason}; use one of {', '.join(usable)}.")


def describe(
    recipe: FineTune, rows: EncodedRows, used: _Rows, batch_selection: BatchSelector | None,
    made_with: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Everything that shapes the result but for the model."""
    shaping = {name: value for name, value in asdict(recipe).items() if name != "recovery_seconds"}
    weights = None if used.weights is None else hashlib.sha256(used.weights[used.indices].tobytes()).hexdigest()[:16]
    choosing = None
    if batch_selection is not None:
        choosing = {"name": batch_selection.name, **batch_selection.model_dump(mode="json")}
    return {
        **(made_with or {}), **shaping, "betas": list(recipe.betas), "rows": len(used.indices),
        "data": rows_digest(rows, used.indices), "weights": weights, "batch_selection": choosing,
    }  # fmt: skip


def _rows(rows: EncodedRows, recipe: FineTune, selection: Selection | None, weights: ArrayLike | None) -> _Rows:
    """Which rows are trained on, with which weights."""
    if selection is not None and selection.num_rows > len(rows):  # fewer: rows were appended since
        raise DataError(f"the selection is from {selection.num_rows:,} rows, but these are {len(rows):,}.")
    chosen = np.arange(len(rows)) if selection is None else selection.indices
    if chosen.size == 0:
        raise DataError("there are no rows to train on.")
    if weights is None and selection is not None:
        weights = selection.weights
    elif weights is not None and not recipe.weighted:
        raise SettingsError("weights are given, but weighted=False; set weighted=True in the recipe to use them.")
    if not recipe.weighted:
        return _Rows(np.sort(chosen), None)
    if weights is None:
        raise SettingsError("weighted=True, but there are no weights: give a selection, or weights of the rows.")
    given = check_weights(weights)
    if len(given) != len(chosen):
        raise DataError(f"{len(given):,} weights are given for {len(chosen):,} rows.")
    factors = np.ones(len(rows))
    factors[chosen] = given / mean_weight(given)
    return _Rows(np.sort(chosen[given > 0]), factors)


def _plan(recipe: FineTune, rows: np.ndarray) -> BatchPlan:
    steps = recipe.max_steps or recipe.epochs * steps_in_epoch(len(rows), recipe.batch_size)
    return BatchPlan(
        rows, recipe.batch_size, recipe.seed, last_step=steps, planned_steps=steps, warmup_ratio=recipe.warmup_ratio
    )


def _autocast(model: nn.Module, recipe: FineTune) -> torch.dtype | None:
    """The data type in which the model computes, None for float32; see `FineTune.precision`."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if torch.float16 in dtypes:
        raise ModelError("Training in float16 needs loss scaling, which is not done here; load it in bfloat16.")
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad and p.is_floating_point()}
    if recipe.precision == "float32" and torch.bfloat16 in frozen:
        raise SettingsError(
            "precision float32, but the model is loaded in bfloat16: load it in float32 (--dtype float32), or leave "
            "the precision to auto."
        )
    low = torch.bfloat16 in dtypes if recipe.precision == "auto" else recipe.precision == "bfloat16"
    return torch.bfloat16 if low else None


def check_folder(folder: Path) -> None:
    """SettingsError for a folder with a model or run that this training has not made, which it would write into."""
    if read_record(folder):
        return
    for name, what in (("config.json", "a model"), ("adapter_config.json", "an adapter"), ("settings.json", "a run")):
        if (folder / name).exists():
            raise SettingsError(f"{folder}: holds {what}, which would be written over. Choose another folder.")


def _claim(folder: Path, made_from: dict[str, Any]) -> None:
    """Write down what this training is made from, or refuse a folder that was begun with something else."""
    check_folder(folder)
    record = read_record(folder)
    before = record.get("made_from", {})
    if before == made_from:
        return
    if record.get("finished") or (before and is_begun(folder)):
        told = (_but_first_weights(before), _but_first_weights(made_from))  # they differ because something else does
        raise made_from_other(folder, NAME, *(told if told[0] != told[1] else (before, made_from)))
    for path in folder.glob(f"{RECOVERY}-*"):  # remains of other settings, or not vouched for by a record
        shutil.rmtree(path)
    (folder / LOG).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    begin_record(folder, made_from)


def _but_first_weights(made_from: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in made_from.items() if name != FIRST_WEIGHTS}
