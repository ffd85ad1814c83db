"""Sharing out a whole number in proportion to sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def floor_shares(sizes: ArrayLike, total: int) -> np.ndarray:
    """⌊total · size / Σ sizes⌋ of every part, (parts,) int64: TAGCOS as published; up to one short for each part.

    Raises:
        ValueError: negative sizes, or a total below 0 or above the sum of the sizes.
    """
    return _shares(sizes, total)[0]


def largest_remainder(sizes: ArrayLike, total: int) -> np.ndarray:
    """Whole shares in proportion to sizes that add up to the total exactly (Hamilton's method), (parts,) int64.

    What rounding down leaves goes, one each, to the largest remainders; of equal remainders to the larger part, then to
    the lower index. No share exceeds its part.

    Raises:
        ValueError: negative sizes, or a total below 0 or above the sum of the sizes.
    """
    shares, remainders = _shares(sizes, total)
    order = np.lexsort((np.arange(len(shares)), -np.asarray(sizes, dtype=np.int64), -remainders))
    shares[order[: total - int(shares.sum())]] += 1
    return shares


def _shares(sizes: ArrayLike, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares rounded down, and what was cut off, in units of 1 / Σ sizes."""
    counts = np.asarray(sizes, dtype=np.int64)
    if counts.ndim != 1 or (counts < 0).any():
        raise ValueError("sizes must be a list of whole numbers of at least 0")
    whole = int(counts.sum())
    if not 0 <= total <= whole:
        raise ValueError(f"{total} cannot be shared out among parts of {whole} in all")
    products = counts * int(total)  # fits int64 up to three thousand million rows
    return products // max(whole, 1), products % max(whole, 1)


def summing_to(weights: ArrayLike, total: float) -> np.ndarray:
    """(k,) non-negative weights scaled to the sum `total`; alike where all are zero."""
    given = np.asarray(weights, dtype=np.float64)
    whole = given.sum()
    return given * (total / whole) if whole > 0 else np.full(len(given), total / max(1, len(given)))
