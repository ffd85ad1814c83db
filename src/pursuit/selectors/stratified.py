"""Random choice that keeps the mixture of sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pursuit.selectors.base import Selector
from pursuit.selectors.selection import Selection
from pursuit.solvers.apportion import largest_remainder

if TYPE_CHECKING:
    from pursuit.store.features import Features


class Stratified(Selector):
    """Rows drawn at random, from every source in proportion to its size.

    The shares are rounded by largest remainder, so that they add up to the budget. [ours]
    """

    name: ClassVar[str] = "stratified"
    paper: ClassVar[str] = "baseline"
    needs_features: ClassVar[bool] = False

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        names, codes = source_codes(features)
        sizes = np.bincount(codes, minlength=len(names))
        shares = largest_remainder(sizes, budget)
        shuffled = np.random.default_rng(seed).permutation(features.num_rows)
        by_source = shuffled[np.argsort(codes[shuffled], kind="stable")]
        place = np.empty(features.num_rows, dtype=np.int64)  # of a row among the shuffled rows of its source
        place[by_source] = np.arange(features.num_rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        sources = [
            {"source": name, "rows": int(size), "chosen": int(share)}
            for name, size, share in zip(names, sizes, shares, strict=True)
        ]
        chosen = shuffled[place[shuffled] < shares[codes[shuffled]]]
        return self._selection(features, chosen, diagnostics={"sources": sources})


def source_codes(features: Features) -> tuple[list[str], np.ndarray]:
    """The sources in order of first appearance, and (N,) the number of each row's source in that list."""
    encoded = features.rows.column("source").combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if hasattr(encoded, "combine_chunks") else encoded
    if encoded.null_count:
        raise ValueError(f"row {int(np.argmax(encoded.is_null().to_numpy(zero_copy_only=False)))} has no source")
    return [str(name) for name in encoded.dictionary.to_pylist()], encoded.indices.to_numpy().astype(np.int64)
