"""Rows that cover the pool: greedy k-center (arXiv 1708.00489)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pursuit.selectors.base import Selector
from pursuit.selectors.selection import Selection
from pursuit.solvers.farthest_point import farthest_point
from pursuit.solvers.rows import DEFAULT_MEMORY_BYTES, blocks, row_dots

if TYPE_CHECKING:
    from pursuit.store.features import Features


class KCenter(Selector):
    """Rows that leave no row of the pool far from a chosen one: each the farthest from those chosen before.

    Greedy k-center (core-set selection, arXiv 1708.00489, section 4) on the averaged gradient features, by Euclidean
    distance. Looks for what is rare, errors and outliers included. [ours]: the first row is the one with the largest
    inner product with the mean. Every choice reads all features: slow for many rows and a large budget.

    Columns of the selection: `distance` (to the nearest row chosen before; of the first, its distance to the mean).
    """

    name: ClassVar[str] = "kcenter"
    paper: ClassVar[str] = "core-set, arXiv 1708.00489"

    memory_bytes: int = Field(
        DEFAULT_MEMORY_BYTES, ge=1 << 20, description="bound on the memory of the rows read at once, in bytes; "
        "the choice does not depend on it",
    )  # fmt: skip

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        matrix = features.average()
        fits = matrix.shape[0] * matrix.shape[1] * 4 <= self.memory_bytes // 2
        matrix = np.ascontiguousarray(matrix[:], np.float32) if fits else matrix
        total = np.zeros(matrix.shape[1])
        for start in range(0, features.num_rows, 1024):  # fixed blocks: the order of summation
            total += np.asarray(matrix[start : start + 1024], np.float64).sum(axis=0)
        mean = total / features.num_rows
        scores = np.concatenate([row_dots(b, mean) for _, _, b in blocks(matrix, np.float64, self.memory_bytes // 4)])
        first = int(np.argmax(scores >= scores.max() - 1e-12 * np.abs(scores).max()))
        indices, distances = farthest_point(matrix, budget, start=first, memory_bytes=self.memory_bytes)
        distances[0] = np.linalg.norm(matrix[np.array([first])][0] - mean)
        diagnostics = {"radius": distances.tolist() if budget <= 2000 else distances[:: budget // 1000].tolist()}
        return self._selection(features, indices, columns={"distance": distances}, diagnostics=diagnostics)
