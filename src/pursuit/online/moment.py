"""The running second moment of the head's gradient, one number a row of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

from pursuit.errors import StoreError


class SecondMoment:
    """Adam's second moment with each row's H numbers averaged into one [ours]: v ← β v + (1 − β) mean_h g².

    Attributes:
        beta: Adam's β₂.
        steps: how many gradients went in.
    """

    def __init__(self, beta: float) -> None:
        self.beta, self.steps = beta, 0
        self._value: Tensor | None = None  # (V,) float32 before bias correction

    def update(self, squares: Tensor | None, vocabulary: int, device: torch.device) -> None:
        """Take in the mean square of each row of one gradient, (V,); None where this process has none.

        With several processes all must call it together: they take in the mean over those that have one, so that v is
        the same everywhere.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            total = torch.zeros(vocabulary + 1, device=device)  # the last: how many processes have one
            if squares is not None:
                total[:vocabulary], total[vocabulary] = squares, 1.0
            dist.all_reduce(total)
            squares = total[:vocabulary] / total[vocabulary] if total[vocabulary] > 0 else None
        if squares is None or not bool(torch.isfinite(squares).all()):
            return  # a step whose gradient overflowed is skipped by the optimizer too
        if self._value is None:
            self._value = torch.zeros(vocabulary, device=device)
        self._value = self._value.to(device).mul_(self.beta).add_(squares, alpha=1 - self.beta)
        self.steps += 1

    def scales(self, eps: float, device: torch.device) -> Tensor | None:
        """√v̂ + eps with v̂ = v / (1 − β^steps), (V,); None before the first gradient: then nothing is scaled [ours]."""
        if self._value is None:
            return None
        return self._value.to(device).div(1 - self.beta**self.steps).sqrt_().add_(eps)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        if self._value is None:
            return {}
        return {"moment": self._value, "moment_steps": torch.tensor(self.steps)}

    def load(self, state: Mapping[str, Tensor], vocabulary: int | None = None) -> None:
        """Go on from what `state` returned."""
        value = state.get("moment")
        if value is not None and vocabulary is not None and len(value) != vocabulary:
            raise StoreError(f"the stored second moment has {len(value)} rows, the model's vocabulary {vocabulary}.")
        self._value = None if value is None else value.clone()
        self.steps = int(state.get("moment_steps", torch.tensor(0)))
