"""Strata of a batch by loss, and how many to keep of each (OptBatch, arXiv 2605.23969)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pursuit.solvers.apportion import largest_remainder

RESOLUTION = 2**40  # real shares are apportioned as whole numbers of this size


def clipped(losses: np.ndarray, quantile: float) -> np.ndarray:
    """Losses above their own quantile set to it [ours]: one outlier must not take the whole count."""
    return np.minimum(losses, np.quantile(losses, quantile))


def make_strata(losses: np.ndarray, count: int, kind: Literal["quantile", "width"]) -> np.ndarray:
    """(m,) stratum of each loss, 0 the easiest.

    Args:
        losses: (m,) finite, m ≥ 1.
        count: K; more than m strata become m.
        kind: "quantile" has as many examples in each as can be (equal losses by index), "width" the same range of
            losses in each; a stratum of these may be empty.
    """
    count = min(count, len(losses))
    strata = np.zeros(len(losses), dtype=np.int64)
    if kind == "quantile":
        for place, members in enumerate(np.array_split(np.argsort(losses, kind="stable"), count)):
            strata[members] = place
        return strata
    low, high = float(losses.min()), float(losses.max())
    if high > low:
        strata = np.minimum(((losses - low) / (high - low) * count).astype(np.int64), count - 1)
    return strata


def expected_counts(losses: np.ndarray, strata: np.ndarray, budget: int) -> np.ndarray:
    """How many of each stratum to keep, (K,) int64: what `budget` draws with probability ∝ exp(loss) expect [ours].

    Largest remainders make them whole. What a stratum is too small for goes to the others in the same proportion, so
    that they sum to the budget.

    Args:
        losses: (m,) finite.
        strata: (m,) as `make_strata` gives them.
        budget: 0 … m.
    """
    sizes = np.bincount(strata)
    log_odds = np.full(len(sizes), -np.inf)
    for stratum in np.flatnonzero(sizes):
        log_odds[stratum] = np.logaddexp.reduce(losses[strata == stratum])
    counts, full = np.zeros(len(sizes), dtype=np.int64), sizes == 0
    while not full.all():
        # relative to the largest that is open, and at least 1: what underflows must still take what is left
        shares = np.exp(np.where(full, -np.inf, log_odds) - log_odds[~full].max())
        whole = np.where(full, 0, np.maximum(1, np.rint(shares * RESOLUTION).astype(np.int64)))
        counts[~full] = largest_remainder(whole, budget - int(counts[full].sum()))[~full]
        over = ~full & (counts > sizes)
        counts[over], full = sizes[over], full | over
        if not over.any():
            break
    return counts


def drawn_counts(losses: np.ndarray, strata: np.ndarray, budget: int, generator: np.random.Generator) -> np.ndarray:
    """How many of each stratum are in one draw of `budget` without replacement, probability ∝ exp(loss), (K,) int64."""
    # the largest of log odds + Gumbel noise are such a draw, and need no odds that underflow
    keys = losses + generator.gumbel(size=len(losses))
    chosen = np.argsort(-keys, kind="stable")[:budget]
    return np.bincount(strata[chosen], minlength=int(strata.max()) + 1)
