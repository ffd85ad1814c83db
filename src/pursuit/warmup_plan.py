"""What a warm-up trains on and how: its settings, and the rows of every optimizer step."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch.utils.data import Dataset

from pursuit.errors import SettingsError

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")


@dataclass(frozen=True)
class WarmUp:
    """Settings of a warm-up. Defaults: TAGCOS's early stop (arXiv 2407.15235, released code) of LESS's run
    (arXiv 2402.04333).

    Attributes:
        checkpoint_steps: optimizer steps after which a checkpoint is kept; training stops after the last. None keeps
            one at the end of each epoch (LESS).
        epochs: length of the planned run, which the learning-rate schedule spans even when training stops earlier.
            When the last checkpoint lies beyond it, the plan is longer by whole epochs (ours).
        sample: a share of the pool (float, 0 to 1) or a number of rows (int). At least one full batch is taken,
            or the whole pool if it is smaller (ours).
        learning_rate, schedule, warmup_ratio, weight_decay, betas, eps, max_grad_norm: of AdamW and its schedule;
            one of linear, cosine, constant, constant_with_warmup. Gradients are clipped to `max_grad_norm`
            (1, the Trainer's default, as in the papers' code; 0 does not clip).
        batch_size: examples per optimizer step. The loss is the mean over the response tokens of the whole batch; the
            last batch of an epoch may be smaller.
        micro_batch_tokens: padded tokens that go through the model at once (ours); halved when memory runs out,
            which changes the gradient by rounding only (and the dropout masks).
        recovery_seconds: at least this long between checkpoints written only to resume from, deleted afterwards
            (ours). They never change the result.
        seed: of the sample, the order of the rows and dropout.
    """

    checkpoint_steps: tuple[int, ...] | None = (10, 20, 30)
    epochs: int = 4
    sample: float | int = 0.05
    learning_rate: float = 2e-5
    schedule: str = "linear"
    warmup_ratio: float = 0.03
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    batch_size: int = 128
    micro_batch_tokens: int = 4096
    recovery_seconds: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        steps = self.checkpoint_steps
        share = isinstance(self.sample, float)
        rules: list[tuple[str, bool, str]] = [
            ("checkpoint_steps", steps is None or (len(steps) > 0 and all(a < b for a, b in pairwise((0, *steps)))),
             "rising step numbers from 1, or None for one checkpoint an epoch"),
            ("epochs", self.epochs >= 1, "at least 1"),
            ("sample", 0 < self.sample <= 1 if share else self.sample >= 1, "a share in (0, 1] or a number of rows"),
            ("learning_rate", self.learning_rate > 0, "above 0"),
            ("schedule", self.schedule in SCHEDULES, "one of " + ", ".join(SCHEDULES)),
            ("warmup_ratio", 0 <= self.warmup_ratio < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            ("eps", self.eps > 0, "above 0"),
            ("max_grad_norm", self.max_grad_norm >= 0, "at least 0 (0 does not clip)"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
            ("micro_batch_tokens", self.micro_batch_tokens >= 1, "at least 1"),
        ]  # fmt: skip
        for name, holds, wanted in rules:
            if not holds:
                raise SettingsError(f"warm-up {name} = {getattr(self, name)!r}: must be {wanted}.")


class Plan(Dataset[dict[str, torch.Tensor]]):
    """Which rows each optimizer step trains on: a pure function of the settings and the pool's size.

    As a data set it has one item a step, from step `start` (0-based) to the last checkpoint.
    """

    def __init__(self, settings: WarmUp, num_rows: int) -> None:
        self.settings, self.start = settings, 0
        wanted = settings.sample if isinstance(settings.sample, int) else round(settings.sample * num_rows)
        count = min(num_rows, max(wanted, settings.batch_size))
        self.rows = np.sort(generator(settings.seed, "sample").choice(num_rows, count, replace=False))  # (n,) int64
        self.steps_per_epoch = -(-count // settings.batch_size)
        by_epoch = tuple(self.steps_per_epoch * epoch for epoch in range(1, settings.epochs + 1))
        self.checkpoint_steps: tuple[int, ...] = settings.checkpoint_steps or by_epoch
        self.last_step = self.checkpoint_steps[-1]
        epochs = max(settings.epochs, -(-self.last_step // self.steps_per_epoch))
        self.planned_steps = epochs * self.steps_per_epoch
        self.rising_steps = math.ceil(self.planned_steps * settings.warmup_ratio)  # learning rate going up from 0

    def batch(self, step: int) -> np.ndarray:
        """(b,) int64: the pool rows of optimizer step `step` (0-based)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = generator(self.settings.seed, "order", epoch).permutation(self.rows)
        return order[position * self.settings.batch_size :][: self.settings.batch_size]

    def examples_seen(self, steps: int) -> int:
        """How many examples the first `steps` steps train on."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * len(self.rows) + rest * self.settings.batch_size

    def __len__(self) -> int:
        return self.last_step - self.start

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        return {"rows": torch.from_numpy(self.batch(self.start + item))}


def generator(seed: int, purpose: str, number: int = 0) -> np.random.Generator:
    """Random numbers that depend on these three alone."""
    entropy = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:16], "big")
    return np.random.default_rng(entropy)
