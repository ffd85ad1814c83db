"""What a warm-up trains on: the rows of every optimizer step."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch.utils.data import Dataset

from pursuit.recipes import WarmUp


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
