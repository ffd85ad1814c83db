"""What a choice inside training is compared with: all, some at random, the hardest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr
from torch import nn

from pursuit.online.base import BatchSelector
from pursuit.online.batch import kept_count
from pursuit.online.choice import Choice
from pursuit.online.head import find_head
from pursuit.online.scorer import Scorer


class FullBatch(BatchSelector):
    """Every candidate: training as it is."""

    name: ClassVar[str] = "full"
    paper: ClassVar[str] = "baseline"

    prune: Literal[0] = Field(0, description="Nothing is left out.")

    def _choose(self, model: nn.Module, batch: Mapping[str, Any], rate: float, ids: np.ndarray | None) -> Choice:
        return Choice(np.arange(len(batch["input_ids"])))


class RandomBatch(BatchSelector):
    """(1 − α) B candidates at random, without looking at them."""

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "baseline"

    prune: float = Field(0.3, ge=0, lt=1, description="α, share of the candidates that is not trained on.")

    def _choose(self, model: nn.Module, batch: Mapping[str, Any], rate: float, ids: np.ndarray | None) -> Choice:
        size = len(batch["input_ids"])
        return Choice(np.sort(self._generator().permutation(size)[: kept_count(size, rate)]))


class HardestBatch(BatchSelector):
    """The (1 − α) B candidates with the highest losses (online hard example mining)."""

    name: ClassVar[str] = "hardest"
    paper: ClassVar[str] = "OHEM, arXiv 1604.03540"

    prune: float = Field(0.3, ge=0, lt=1, description="α, share of the candidates that is not trained on.")
    chunk: int = Field(
        2**25, ge=2**12, description="Numbers held at once for logits and what is made of them, 4 bytes each."
    )
    score_dtype: Literal["bfloat16", "float16", "float32"] | None = Field(
        None, description="Autocast of the scoring pass; as the training if not given."
    )

    _scorer: Scorer = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self._scorer = Scorer(None, 0, self.seed, self.chunk, self.score_dtype, None)

    def _choose(self, model: nn.Module, batch: Mapping[str, Any], rate: float, ids: np.ndarray | None) -> Choice:
        scores = self._scorer(model, batch, find_head(model), at_once=self._at_once)
        losses = scores.losses
        dropped = int(np.isinf(losses).sum())
        self._note_dropped(dropped, losses)
        valid = np.flatnonzero(np.isfinite(losses))
        places = valid if len(valid) else np.arange(len(losses))
        hardest = places[np.argsort(-losses[places], kind="stable")]  # equal losses: the lower index
        return Choice(
            hardest[: kept_count(len(losses), rate)], losses, dropped=dropped, scored_tokens=scores.tokens,
        )  # fmt: skip
