"""The baseline that every method has to beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pursuit.selectors.base import Selector
from pursuit.selectors.selection import Selection

if TYPE_CHECKING:
    from pursuit.store.features import Features


class Random(Selector):
    """Rows drawn at random, each subset of that size being equally likely.

    With one seed a smaller budget gives the beginning of what a larger one gives.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "baseline"
    needs_features: ClassVar[bool] = False

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        return self._selection(features, np.random.default_rng(seed).permutation(features.num_rows)[:budget])
