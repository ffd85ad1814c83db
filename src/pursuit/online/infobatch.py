"""InfoBatch: leave out some of what is already learnt, and weigh the rest of it up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from pursuit.online.base import BatchSelector
from pursuit.online.choice import Choice
from pursuit.online.memory import Memory


class InfoBatch(BatchSelector):
    """Leaves out easy examples at random and weighs the easy ones that stay, so that the mean gradient is unchanged.

    An example is easy when its loss at its last visit lies below the mean of all remembered losses; an easy one is left
    out with probability r, one that stays has weight 1/(1 − r). The last part of the training uses all (Qin et al.,
    ICLR 2024, arXiv 2303.04947). There is no scoring pass: losses are those of training, told by `remember`, so that an
    example is never left out at its first visit. Of a batch of B easy ones one stays in any case, and the weight is
    1/(1 − r + r^B/B) [ours].

    The paper draws once an epoch and has fewer steps; here each candidate batch is drawn from as it comes, and its step
    costs less [ours]. `last.weights` are the factors of the losses of the kept; the loss is a mean over all candidates.
    """

    name: ClassVar[str] = "infobatch"
    paper: ClassVar[str] = "InfoBatch, arXiv 2303.04947"

    prune: float = Field(0.5, ge=0, lt=1, description="r, probability with which an easy example is left out.")
    anneal: float = Field(0.125, ge=0, lt=1, description="Share of the training, its last, that uses all examples.")
    chunk: int = Field(
        2**25, ge=2**12, description="Numbers held at once for logits and what is made of them, 4 bytes each."
    )

    _memory: Memory = PrivateAttr(default_factory=Memory)

    @property
    def needs_ids(self) -> bool:
        return True

    def rate(self) -> float:
        """r at this call; 0 in the last part of the training, whose length must be known unless `anneal` is 0."""
        rate = super().rate()
        wanted_by = f"anneal={self.anneal} (its last part uses all; 0 for none)"
        return 0.0 if rate and self.anneal and self._share(wanted_by) >= 1 - self.anneal else rate

    def remember(self, ids: np.ndarray | Tensor, losses: np.ndarray | Tensor) -> None:
        """Tell the losses with which examples were just trained on, (n,) each; NaN where there is no label."""
        ids = np.asarray(torch.as_tensor(ids).cpu(), dtype=np.int64)
        losses = torch.as_tensor(losses).detach().float().cpu().numpy()
        known = np.isfinite(losses)
        self._memory.store(ids[known], losses[known])

    def _drops(self, size: int, rate: float) -> bool:
        return rate > 0

    def _choose(self, model: nn.Module, batch: Mapping[str, Any], rate: float, ids: np.ndarray | None) -> Choice:
        assert ids is not None
        known = self._memory.known(ids)
        losses = np.full(len(ids), np.nan)
        losses[known] = self._memory.losses(ids[known])
        easy = known & (losses < self._memory.mean_loss())
        generator = self._generator()
        kept = ~easy | (generator.random(len(ids)) >= rate)
        if not kept.any():
            kept[generator.integers(len(ids))] = True
        # one is kept where all would go: so each is kept a little more often, and counts a little less
        share = 1 - rate + (rate ** len(ids) / len(ids) if easy.all() else 0.0)
        order = np.flatnonzero(kept)
        return Choice(order, losses, weights=np.where(easy[order], 1 / share, 1.0))

    def reset(self) -> None:
        super().reset()
        self._memory = Memory()

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), **self._memory.state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load(state)
        self._memory.load(state)
