"""Means with 95 % intervals, over examples and over families."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LEVEL = 0.95
Z = float(stats.norm.ppf((1 + LEVEL) / 2))


@dataclass(frozen=True, slots=True)
class Score:
    """A mean and its 95 % interval.

    Attributes:
        mean: of the examples (or of the families' means).
        low, high: the interval; None where one example leaves no spread to tell it by.
        count: examples that it is over.
    """

    mean: float
    low: float | None
    high: float | None
    count: int


def score(values: ArrayLike) -> Score:
    """The mean of independent examples.

    Interval [ours]: Wilson's where all values are 0 or 1, as the usual one has no width when all agree; otherwise
    Student's t.

    Args:
        values: (n,) with n ≥ 1, no NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    count, mean = len(array), float(array.mean())
    if _is_share(array):
        centre = (mean + Z**2 / (2 * count)) / (1 + Z**2 / count)
        half = Z * math.sqrt(mean * (1 - mean) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
        return Score(mean, max(0.0, centre - half), min(1.0, centre + half), count)
    if count < 2:
        return Score(mean, None, None, count)
    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * float(array.std(ddof=1)) / math.sqrt(count)
    return Score(mean, mean - half, mean + half, count)


def macro_score(families: Sequence[ArrayLike]) -> Score:
    """The mean of the families' means, each family counting the same however many examples it has.

    Interval [ours]: over other examples of the same families (not over other families), as a mean of independent
    strata; Student's t with Welch's and Satterthwaite's degrees of freedom. Where all values are 0 or 1, normal, with
    each family's share moved towards one half for its variance, by two more successes and two more failures (as Agresti
    and Coull do), so that families without a failure do not count as certain.

    Args:
        families: values of each family, each with at least one.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in families]
    count, mean = sum(map(len, arrays)), float(np.mean([array.mean() for array in arrays]))
    share = all(map(_is_share, arrays))
    if not share and any(len(array) < 2 for array in arrays):
        return Score(mean, None, None, count)
    variances = np.array([_variance_of_share(array) if share else array.var(ddof=1) / len(array) for array in arrays])
    quantile = Z if share else _welch_quantile(variances, np.array([len(array) for array in arrays]))
    half = quantile * math.sqrt(float(variances.sum())) / len(arrays)
    low, high = mean - half, mean + half
    return Score(mean, max(0.0, low), min(1.0, high), count) if share else Score(mean, low, high, count)


def _is_share(values: NDArray[np.float64]) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _variance_of_share(values: NDArray[np.float64]) -> float:
    share = (float(values.sum()) + 2) / (len(values) + 4)
    return share * (1 - share) / len(values)  # of the plain share, which is what is averaged


def _welch_quantile(variances: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    """Of Student's t, for a sum of means with these variances of the mean, each from so many examples."""
    spread = float((variances**2 / (counts - 1)).sum())
    return Z if spread == 0 else float(stats.t.ppf((1 + LEVEL) / 2, float(variances.sum()) ** 2 / spread))
