"""Rows by their own loss: the hardest for the model, the easiest, or those in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.stats import rankdata

from pursuit.selectors.base import Selector
from pursuit.selectors.selection import Selection

if TYPE_CHECKING:
    from pursuit.store.features import Features

Band = Literal["high", "middle", "low"]
Checkpoints = Literal["last", "average"]
At = Literal["base", Checkpoints]
AT = "of the model as given (no warm-up is needed), at the warm-up's last checkpoint, or averaged over all of them"


class Loss(Selector):
    """Rows with the highest loss (or the lowest, or the middle): what the model finds hard.

    The loss is the mean cross-entropy over the row's response tokens: that of the model as given, for which a forward
    pass over the pool is enough; or at the warm-up's last checkpoint, or its average over the checkpoints by their
    learning-rate weights. High loss finds what is not learnt yet, and also noise and wrong labels. `perplexity` ranks
    by exp of the same number, and so in the same order; it begins with the middle band.
    """

    name: ClassVar[str] = "loss"
    paper: ClassVar[str] = "baseline"

    band: Band = Field("high", description="which rows: those with the highest, middle or lowest loss")
    at: At = Field("base", description=f"the loss {AT}")

    @property
    def needs_embeddings(self) -> bool:
        """For the loss of the model as given."""
        return self.at == "base"

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        losses = row_losses(features, self.at)
        chosen = choose_band(losses, budget, self.band)
        diagnostics = {"losses": quantiles(losses), "losses_chosen": quantiles(losses[chosen])}
        return self._selection(features, chosen, columns={"score": losses[chosen]}, diagnostics=diagnostics)


def row_losses(features: Features, at: At) -> np.ndarray:
    """(N,) float64 loss of each row, in nats a token."""
    losses = per_row(features.losses, features.weights, "average" if at == "average" else "last")
    if np.isnan(losses).all():
        raise ValueError("the losses of the rows are not known. A run has them (--run); own features bring none")
    if at == "base" and features.num_checkpoints > 1:
        raise ValueError(
            f"these are the losses at {features.num_checkpoints} checkpoints of a warm-up, not of the model as given. "
            "Set at=last or at=average"
        )
    _check_finite(losses, "loss")
    return losses


def row_gradient_norms(features: Features, checkpoints: Checkpoints) -> np.ndarray:
    """(N,) float64 norm of each row's gradient."""
    norms = per_row(features.gradient_norms, features.weights, checkpoints)
    if np.isnan(norms).all():
        raise ValueError("the gradient norms of the rows are not known. A run has them (--run)")
    _check_finite(norms, "gradient norm")
    if len(norms) > 1 and np.abs(norms - 1).max() < 1e-3:
        raise ValueError(
            "every row has a gradient norm of 1: these features were scaled to unit length before. Give them unscaled"
        )
    return norms


def per_row(values: np.ndarray, weights: np.ndarray, checkpoints: Checkpoints) -> np.ndarray:
    """(N,) float64 of (T, N): the last checkpoint's, or the average by the checkpoints' weights."""
    values = np.asarray(values, dtype=np.float64)
    return values[-1] if checkpoints == "last" else np.einsum("t,tn->n", weights, values)


def choose_band(values: np.ndarray, budget: int, band: Band) -> np.ndarray:
    """`budget` indices from the high end, the low end or the middle; of equal ones the lowest index first.

    Middle [ours]: nearest to the median in rank, equal values sharing the mean of their ranks. A smaller budget gives
    the beginning of what a larger one gives.
    """
    if band == "middle":
        ranks = rankdata(values)
        values = -np.abs(ranks - (len(values) + 1) / 2)
    return np.argsort(values if band == "low" else -values, kind="stable")[:budget]


def quantiles(values: np.ndarray) -> list[float]:
    """Minimum, quartiles and maximum."""
    return [float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]


def _check_finite(values: np.ndarray, what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise ValueError(f"the {what} of row {bad[0]} is not a finite number ({len(bad)} such rows in all)")
