"""The warm-up run: a short training on a random part of the pool, whose path is the trajectory (LESS, TAGCOS)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pursuit.batches import EncodedRows
from pursuit.errors import DataError, ModelError
from pursuit.files import read_json, write_record
from pursuit.models.trainable import trainable_parameters
from pursuit.recipes import WarmUp
from pursuit.training.folder import KEPT, RECOVERY, made_from_other, remove_recovery, rows_digest, weights_digest
from pursuit.training.surroundings import in_float32
from pursuit.training.trainer import Task, train
from pursuit.warmup.plan import Plan
from pursuit.warmup.recorder import TrajectoryRecorder
from pursuit.warmup.trajectory import MANIFEST, Trajectory, find_resume_point

__all__ = ["EncodedRows", "Plan", "WarmUp", "warm_up"]


def warm_up(model: nn.Module, encoded: EncodedRows, folder: str | Path, settings: WarmUp | None = None) -> Trajectory:
    """Train the model's trainable parameters on a sample of the pool and keep checkpoints of weights and moments.

    A finished warm-up in `folder` is returned as it is. One that was killed goes on from its last whole checkpoint to
    the same bits as one that was not. Afterwards the model holds the weights of the last checkpoint.

    Args:
        model: from `prepare_trainable`; its trainable parameters change in place.
        encoded: the pool, tokenised.
        folder: where the trajectory goes; one process at a time.
        settings: see `WarmUp`.

    Returns:
        The trajectory θ₁…θ_T (LESS, arXiv 2402.04333; TAGCOS, arXiv 2407.15235, section 3).

    Raises:
        StoreError: the folder holds a warm-up with other settings, data or model.
        ModelError: the loss is not a number, memory does not suffice for one example, or nothing is trainable.
        DataError: the pool is empty, or a batch has no response token.
    """
    settings, folder = settings or WarmUp(), Path(folder)
    if len(encoded) == 0:
        raise DataError("the pool has no usable rows, so there is nothing to warm up on.")
    parameters = trainable_parameters(model)
    if not parameters:
        raise ModelError("The model has no trainable parameter; call prepare_trainable first.")
    if any(parameter.dtype == torch.float16 for parameter in model.parameters()):
        raise ModelError(
            "The model is loaded in float16, in which small gradients are zero unless the loss is scaled, which is not "
            "done here: take --dtype bfloat16, or float32."
        )
    plan = Plan(settings, len(encoded))
    _claim(folder, _manifest(settings, plan, encoded, parameters))
    point = find_resume_point(folder, plan.checkpoint_steps)
    if point is None or point.step < plan.last_step:
        own = all(parameter.dtype == torch.bfloat16 for parameter in parameters.values())  # a LoRA's are float32
        task = Task("warm-up", encoded, plan, settings, autocast=torch.bfloat16 if own else None)
        with in_float32(model):
            train(model, task, TrajectoryRecorder(folder, plan, point))
    remove_recovery(folder)
    trajectory = Trajectory(folder)
    trajectory.load_into(model, len(trajectory) - 1)
    return trajectory


def _claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Write down what this warm-up is made from, or refuse a folder that was begun with something else."""
    before = read_json(folder / MANIFEST) if (folder / MANIFEST).exists() else {}
    if before == manifest:
        return
    if find_resume_point(folder, before.get("checkpoint_steps", [])) is not None:
        raise made_from_other(folder, "warm-up", before, manifest)
    for kind in (KEPT, RECOVERY):  # remains of other settings, damaged or not vouched for by a manifest
        for path in folder.glob(f"{kind}-*"):
            shutil.rmtree(path)
    write_record(folder / MANIFEST, manifest)


def _manifest(
    settings: WarmUp, plan: Plan, encoded: EncodedRows, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Any]:
    """Everything that shapes the result, but for the frozen weights: settings, data and first weights."""
    shaping = {name: value for name, value in asdict(settings).items() if name != "recovery_seconds"}
    return shaping | {
        "checkpoint_steps": list(plan.checkpoint_steps), "betas": list(settings.betas),
        "planned_steps": plan.planned_steps, "pool_rows": len(encoded), "sampled_rows": len(plan.rows),
        "sampled_data": rows_digest(encoded, plan.rows), "first_weights": weights_digest(parameters),
    }  # fmt: skip
