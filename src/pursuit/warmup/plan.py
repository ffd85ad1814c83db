"""What a warm-up trains on: a random part of the pool, and the steps at which checkpoints are kept."""

from __future__ import annotations

import numpy as np

from pursuit.recipes import WarmUp
from pursuit.training.plan import BatchPlan, generator, steps_in_epoch


class Plan(BatchPlan):
    """Which rows each optimizer step trains on: a pure function of the settings and the pool's size."""

    def __init__(self, settings: WarmUp, num_rows: int) -> None:
        self.settings = settings
        wanted = settings.sample if isinstance(settings.sample, int) else round(settings.sample * num_rows)
        count = min(num_rows, max(wanted, settings.batch_size))
        rows = np.sort(generator(settings.seed, "sample").choice(num_rows, count, replace=False))  # (n,) int64
        an_epoch = steps_in_epoch(count, settings.batch_size)
        by_epoch = tuple(an_epoch * epoch for epoch in range(1, settings.epochs + 1))
        self.checkpoint_steps: tuple[int, ...] = settings.checkpoint_steps or by_epoch
        last_step = self.checkpoint_steps[-1]
        epochs = max(settings.epochs, -(-last_step // an_epoch))
        super().__init__(
            rows, settings.batch_size, settings.seed, last_step=last_step, planned_steps=epochs * an_epoch,
            warmup_ratio=settings.warmup_ratio,
        )  # fmt: skip
