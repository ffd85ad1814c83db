"""The rows with the longest responses: a baseline that is hard to beat (arXiv 2402.04833)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pursuit.selectors.base import Selector
from pursuit.selectors.selection import Selection

if TYPE_CHECKING:
    from pursuit.store.features import Features


class Longest(Selector):
    """Rows with the longest responses, counted in the model's tokens.

    "Long Is More for Alignment" (arXiv 2402.04833) selects so. Of equally long responses the lower index comes first.
    Counted are the tokens that are learnt from, after rows were cut to the maximal length: all rows cut there may be
    equally long.
    """

    name: ClassVar[str] = "longest"
    paper: ClassVar[str] = "Long Is More, arXiv 2402.04833"
    needs_features: ClassVar[bool] = False

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        if "response_length" not in features.rows.column_names:
            raise ValueError(
                "the rows have no column response_length. A run has it (--run); add it to the `rows` of features of "
                "your own"
            )
        lengths = features.rows["response_length"].to_numpy().astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(lengths))
        if len(bad):
            raise ValueError(f"row {bad[0]} has no response_length")
        chosen = np.argsort(-lengths, kind="stable")[:budget]
        share = float(lengths[chosen].sum() / lengths.sum()) if lengths.any() else 0.0
        return self._selection(
            features, chosen, columns={"score": lengths[chosen]}, diagnostics={"share_of_response_tokens": share}
        )
