"""The rows with the largest gradients: GraND (arXiv 2107.07075)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pursuit.selectors.base import Selector
from pursuit.selectors.loss import Checkpoints, choose_band, quantiles, row_gradient_norms
from pursuit.selectors.selection import Selection

if TYPE_CHECKING:
    from pursuit.store.features import Features


class GradNorm(Selector):
    """Rows with the largest gradient norm early in training, averaged over the checkpoints.

    GraNd, "Deep Learning on a Data Diet" (arXiv 2107.07075, section 2), averages the norm over models of several random
    starts; the average here is over the checkpoints of one warm-up, by their learning-rate weights [ours]. The norm is
    that of the plain gradient by the trained parameters, before preconditioning and projection; of features of one's
    own, the norm of the row as given. Large gradients are often short responses, noise and wrong labels.
    """

    name: ClassVar[str] = "gradnorm"
    paper: ClassVar[str] = "GraNd, arXiv 2107.07075"

    checkpoints: Checkpoints = Field("average", description="norm at the last checkpoint, or averaged over all of them")

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        norms = row_gradient_norms(features, self.checkpoints)
        chosen = choose_band(norms, budget, "high")
        diagnostics = {"gradient_norms": quantiles(norms), "gradient_norms_chosen": quantiles(norms[chosen])}
        return self._selection(features, chosen, columns={"score": norms[chosen]}, diagnostics=diagnostics)
