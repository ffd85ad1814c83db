"""Checkpoints of a warm-up while it runs: the trajectory's own, and others only to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from pursuit.gradients.precondition import AdamState
from pursuit.models.trainable import trainable_parameters
from pursuit.training.folder import KEPT, RECOVERY, check_same_parameters, folder_name, remove_recovery
from pursuit.training.recorder import Recorder, check_finite
from pursuit.warmup.plan import Plan
from pursuit.warmup.trajectory import Checkpoint, load_weights, read_moments, write_checkpoint


class TrajectoryRecorder(Recorder):
    """Goes on from `point` (None: from the start); losses and rates are those since the last kept checkpoint."""

    def __init__(self, folder: Path, plan: Plan, point: Checkpoint | None) -> None:
        settings = plan.settings
        begun = None if point is None or point.step in plan.checkpoint_steps else point  # in the midst of an interval
        super().__init__(
            folder, begun_at=0 if point is None else point.step, losses=() if begun is None else begun.losses,
            micro_batch_tokens=settings.micro_batch_tokens if point is None else point.micro_batch_tokens,
            learning_rates=() if begun is None else begun.learning_rates, pause_seconds=settings.recovery_seconds,
        )  # fmt: skip
        self.plan, self.point = plan, point

    def keeps(self, step: int) -> bool:
        return step in self.plan.checkpoint_steps

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        assert self.point is not None  # the Recorder restores only what was begun
        load_weights(model, self.point)
        moments, parameters = read_moments(self.point), trainable_parameters(model)
        check_same_parameters(self.point.folder, parameters, moments.exp_avg)
        check_same_parameters(self.point.folder, parameters, moments.exp_avg_sq)
        for name, parameter in parameters.items():
            optimizer.state[parameter] = {
                "step": torch.tensor(float(moments.step)),
                "exp_avg": moments.exp_avg[name].to(parameter.device),
                "exp_avg_sq": moments.exp_avg_sq[name].to(parameter.device),
            }

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        settings, parameters = self.plan.settings, trainable_parameters(model)
        first, second = (_moment(parameters, optimizer, key) for key in ("exp_avg", "exp_avg_sq"))
        for tensors in (parameters, first, second):
            check_finite("warm-up", step, tensors)
        kept = self.keeps(step)
        folder = self.folder / folder_name(KEPT if kept else RECOVERY, step)
        checkpoint = Checkpoint(
            folder=folder, step=step, learning_rates=tuple(self.learning_rates), losses=tuple(self.losses),
            examples_seen=self.plan.examples_seen(step), micro_batch_tokens=self.micro_batch_tokens,
            betas=settings.betas, eps=settings.eps, sha256={},
        )  # fmt: skip
        write_checkpoint(checkpoint, parameters, AdamState(first, second, step, settings.betas, settings.eps))
        remove_recovery(self.folder, keep=folder)
        if kept:
            self.losses, self.learning_rates = [], []


def _moment(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, key: str
) -> dict[str, torch.Tensor]:
    """One of Adam's moments by name; zero for a parameter that no gradient has reached."""
    found = {name: optimizer.state.get(parameter, {}).get(key) for name, parameter in parameters.items()}
    return {name: torch.zeros_like(parameters[name]) if m is None else m for name, m in found.items()}
