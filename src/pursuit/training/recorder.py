"""What a training keeps of itself while it runs: losses, learning rates, and checkpoints to go on from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from pursuit.errors import ModelError
from pursuit.pace import Pace


class Recorder(TrainerCallback, ABC):
    """Restores the state before the first step and saves it after some.

    Args:
        folder: where checkpoints go.
        begun_at: steps taken before; 0 starts anew.
        micro_batch_tokens: padded tokens at once, from then on; the trainer lowers it when memory runs out.
        losses, learning_rates: of the steps since the last kept checkpoint.
        pause_seconds: at least so long between checkpoints that are written only to go on from.
    """

    def __init__(
        self, folder: Path, *, begun_at: int, micro_batch_tokens: int, losses: Sequence[float],
        learning_rates: Sequence[float], pause_seconds: float,
    ) -> None:  # fmt: skip
        self.folder, self.begun_at, self.micro_batch_tokens = folder, begun_at, micro_batch_tokens
        self.losses, self.learning_rates = list(losses), list(learning_rates)
        self.advance: Callable[[float], None] = lambda steps: None
        self._pace = Pace(pause_seconds)

    @abstractmethod
    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put weights and the optimizer's state back as they were after step `begun_at`."""

    @abstractmethod
    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write what `restore` reads."""

    def trained_on(self, examples: int, tokens: int, learnt_tokens: int) -> None:
        """Told at each step what went into it: rows, their tokens without padding, and those that are learnt."""

    def chosen(self, figures: Mapping[str, float]) -> None:
        """Told at each step what the batch selector did, where there is one."""

    def keeps(self, step: int) -> bool:
        """Whether a checkpoint is written after this step, however long ago the last one was."""
        return False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.begun_at == 0:
            return
        optimizer, scheduler = kwargs["optimizer"], kwargs["lr_scheduler"]
        self.restore(kwargs["model"], optimizer)
        state.global_step = scheduler.last_epoch = self.begun_at
        for group, base, share in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * share(self.begun_at)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.learning_rates.append(float(kwargs["optimizer"].param_groups[0]["lr"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(1)
        if self.keeps(state.global_step) or self._pace.due():
            with self._pace.saving():
                self.save(state.global_step, kwargs["model"], kwargs["optimizer"])


def check_finite(name: str, step: int, tensors: Mapping[str, Tensor]) -> None:
    """ModelError that names the first tensor with a number that is not finite."""
    for what, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(not_finite(name, step, f"a weight or moment of {what}"))


def not_finite(name: str, step: int, what: str) -> str:
    return (
        f"{name} step {step}: {what} is not a finite number. Try float32 or bfloat16 instead of float16, a smaller "
        "learning rate, or look for broken rows in the pool (`pursuit inspect`)."
    )
