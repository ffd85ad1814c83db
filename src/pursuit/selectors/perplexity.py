"""Pruning by perplexity: keep the middle of its distribution (arXiv 2309.04564)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pursuit.selectors.base import Selector
from pursuit.selectors.loss import AT, At, Band, choose_band, quantiles, row_losses
from pursuit.selectors.selection import Selection

if TYPE_CHECKING:
    from pursuit.store.features import Features


class Perplexity(Selector):
    """Rows of middle perplexity (or low, or high): neither known already nor noise.

    Perplexity is exp of the row's mean loss over its response tokens, under the model as given, or as the warm-up
    trained it. "When Less Is More" (arXiv 2309.04564) prunes pre-training data by the perplexity of a reference model,
    and finds the middle the best to keep. As exp is monotone, each band holds exactly the rows that `loss` has in it:
    the two methods differ in the default band and in the score they report.
    """

    name: ClassVar[str] = "perplexity"
    paper: ClassVar[str] = "When Less Is More, arXiv 2309.04564"

    band: Band = Field("middle", description="which rows: those with the highest, middle or lowest perplexity")
    at: At = Field("base", description=f"from the loss {AT}")

    @property
    def needs_embeddings(self) -> bool:
        """For the perplexity under the model as given."""
        return self.at == "base"

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        losses = row_losses(features, self.at)
        chosen = choose_band(losses, budget, self.band)
        perplexities = np.exp(losses)
        diagnostics = {
            "perplexities": quantiles(perplexities), "perplexities_chosen": quantiles(perplexities[chosen]),
        }  # fmt: skip
        return self._selection(features, chosen, columns={"score": perplexities[chosen]}, diagnostics=diagnostics)
