"""Weights of training rows: checked, and scaled to mean 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from pursuit.errors import DataError


def check_weights(weights: ArrayLike, name_row: Callable[[int], str] = "row {}".format) -> np.ndarray:
    """(n,) float64 weights of n rows.

    Args:
        name_row: how the row at a place is named in an error.

    Raises:
        DataError: a weight that is negative or no finite number, with its row; or no weight above 0.
    """
    try:
        checked = np.asarray(weights, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise DataError(f"the weights are not all numbers ({error}).") from None
    wrong = np.flatnonzero(~(np.isfinite(checked) & (checked >= 0)))
    if wrong.size:
        place = int(wrong[0])
        raise DataError(
            f"{name_row(place)} has the weight {checked[place]}: weights must be finite and not negative "
            f"({wrong.size:,} of {checked.size:,} are not)."
        )
    if not checked.any():
        raise DataError(f"all {checked.size:,} weights are 0, so there is nothing to train on.")
    return checked


def mean_weight(weights: np.ndarray) -> float:
    """The mean of the weights above 0, by which all are divided: a row of weight 0 counts as absent."""
    return float(weights[weights > 0].mean())
