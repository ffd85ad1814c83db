"""What one call of a batch selector chose, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Choice:
    """What one call chose, and why.

    Attributes:
        order: (n,) int64 indices in order of choice; `indices` are the same, ascending.
        losses: (B,) float64 losses by which was chosen, NaN where unknown; None where none were needed.
        strata: (B,) int64 stratum of each candidate, 0 the easiest, −1 for one that cannot be chosen; None without.
        distances: (n,) of each chosen to the nearest chosen before it, infinity for the first; None without.
        weights: (n,) factors of the losses of `indices` that keep the gradient's expectation; None for all 1.
        dropped: how many candidates were left out because their loss or feature is not finite.
        scored_tokens: tokens, padding included, that went through a forward pass without graph.
        scored_share: share of the model that this pass ran.
        more_flops: what selection computed beyond that pass.
        size: B, candidates.
        seconds: wall-clock time of the call.
        scoring_flops: operations of the pass and beyond it; `flops_spent`: these and training on the kept;
            `flops_full`: training on all candidates.
    """

    order: np.ndarray
    losses: np.ndarray | None = None
    strata: np.ndarray | None = None
    distances: np.ndarray | None = None
    weights: np.ndarray | None = None
    dropped: int = 0
    scored_tokens: int = 0
    scored_share: float = 1.0
    more_flops: float = 0.0
    size: int = 0
    seconds: float = 0.0
    scoring_flops: float = 0.0
    flops_spent: float = 0.0
    flops_full: float = 0.0

    @property
    def indices(self) -> np.ndarray:
        return np.sort(self.order)

    @property
    def kept_per_stratum(self) -> list[int]:
        """How many were kept of each stratum, easiest first; empty without strata."""
        if self.strata is None:
            return []
        chosen = self.strata[self.order]
        return np.bincount(chosen[chosen >= 0], minlength=int(self.strata.max(initial=-1)) + 1).tolist()

    def figures(self) -> dict[str, float]:
        """The numbers that a training logs."""
        figures: dict[str, float] = {
            "candidates": self.size, "kept": len(self.order), "dropped": self.dropped, "seconds": self.seconds,
            "flops_spent": self.flops_spent, "flops_saved": self.flops_full - self.flops_spent,
        }  # fmt: skip
        figures.update({f"kept_stratum_{place}": kept for place, kept in enumerate(self.kept_per_stratum)})
        if self.losses is not None:
            for key, losses in (("candidate_loss", self.losses), ("kept_loss", self.losses[self.order])):
                finite = losses[np.isfinite(losses)]
                if len(finite):
                    figures[key] = float(finite.mean())
        if self.distances is not None and len(self.distances) > 1:
            figures["spread"] = float(self.distances[1:].mean())
        return figures
