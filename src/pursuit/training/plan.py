"""Which rows each optimizer step trains on."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch.utils.data import Dataset


class BatchPlan(Dataset[dict[str, torch.Tensor]]):
    """The rows of every optimizer step: a pure function of what is given here.

    As a data set it has one item a step, from step `start` (0-based) to the last.

    Args:
        rows: (n,) int64, the rows that an epoch trains on once each, in an order that the seed draws anew each epoch.
        batch_size: rows a step; the last batch of an epoch may be smaller.
        seed: of the order.
        last_step: where training stops.
        planned_steps: what the learning-rate schedule spans; at least `last_step`.
        warmup_ratio: share of the planned steps in which the learning rate rises from 0.
    """

    def __init__(
        self, rows: np.ndarray, batch_size: int, seed: int, *, last_step: int, planned_steps: int, warmup_ratio: float
    ) -> None:
        self.rows, self.batch_size, self.seed, self.start = rows, batch_size, seed, 0
        self.last_step, self.planned_steps = last_step, planned_steps
        self.steps_per_epoch = steps_in_epoch(len(rows), batch_size)
        self._drawn: tuple[int, np.ndarray] | None = None
        self.rising_steps = math.ceil(planned_steps * warmup_ratio)  # learning rate going up from 0

    def batch(self, step: int) -> np.ndarray:
        """(b,) int64: the pool rows of optimizer step `step` (0-based)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._drawn is None or self._drawn[0] != epoch:  # steps come one after another: an epoch is drawn once
            self._drawn = epoch, generator(self.seed, "order", epoch).permutation(self.rows)
        return self._drawn[1][position * self.batch_size :][: self.batch_size]

    def examples_seen(self, steps: int) -> int:
        """How many examples the first `steps` steps train on."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * len(self.rows) + rest * self.batch_size

    def __len__(self) -> int:
        return self.last_step - self.start

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        return {"rows": torch.from_numpy(self.batch(self.start + item))}


def steps_in_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps that see each row once."""
    return -(-rows // batch_size)


def generator(seed: int, purpose: str, number: int = 0) -> np.random.Generator:
    """Random numbers that depend on these three alone."""
    entropy = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()[:16], "big")
    return np.random.default_rng(entropy)
