"""Rows as long as the projected gradients are, instead of unit rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pursuit.solvers.rows import RowMatrix

if TYPE_CHECKING:
    from pursuit.store.features import Features


def with_raw_rows(features: Features) -> Features:
    """The same features with every unit row multiplied by the norm that it had.

    Raises:
        ValueError: the norms of rows are not known.
    """
    from pursuit.store.features import Features

    unknown = np.argwhere(~np.isfinite(features.norms))
    if len(unknown):
        raise ValueError(f'rows="raw" needs the norms of the projected rows; that of row {unknown[0, 1]} is not known')
    matrices = [_Raw(features.checkpoint(number), norms) for number, norms in enumerate(features.norms)]
    known = (features.gradient_norms, features.losses, features.norms)
    return Features(matrices, features.weights, features.rows, *known).on(features.engine)


class _Raw:
    """(N, d) rows multiplied by (N,) norms, when they are asked for."""

    def __init__(self, matrix: RowMatrix, norms: np.ndarray) -> None:
        self.matrix, self.norms = matrix, norms
        self.shape = matrix.shape

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self.matrix[rows] * self.norms[rows][:, None]
