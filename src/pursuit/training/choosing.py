"""Leaving out, at each step, part of its rows: what the trainer asks of a batch selector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from pursuit.batches import EncodedRows, collate, labelled


class BatchSelection(Protocol):
    """Chooses which rows of a step's batch are trained on; see `pursuit.online.BatchSelector`."""

    @property
    def last(self) -> Any: ...
    def __call__(self, model: nn.Module, batch: Mapping[str, Any], /, *, at_once: int | None = None) -> Tensor: ...
    def observe(self, model: nn.Module) -> None: ...
    def at(self, step: int, total: int) -> None: ...
    def reset(self) -> None: ...
    def state(self) -> Mapping[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class Remembers(Protocol):
    """One that wants to know the losses with which rows were trained on."""

    def remember(self, ids: np.ndarray, losses: Tensor) -> None: ...


@dataclass(frozen=True)
class Chosen:
    """What one optimizer step trains on.

    Attributes:
        rows: (n,) int64.
        factors: (n,) float64 of their losses; None for all 1.
        tokens: what the sum of their losses is divided by; None for the number of their response tokens.
    """

    rows: np.ndarray
    factors: np.ndarray | None
    tokens: int | None = None


def choose(
    selection: BatchSelection, model: nn.Module, encoded: EncodedRows, rows: np.ndarray, weights: np.ndarray | None,
    at_once: int,
) -> Chosen:  # fmt: skip
    """The part of a step's rows that is trained on.

    Where the selector weighs rows, it makes up for those it left out: the loss is a mean over all candidates' tokens.

    Args:
        weights: (len(encoded),) factors of the losses.
        at_once: padded tokens that go through the model at once.
    """
    batch: dict[str, Any] = collate(encoded, rows, next(model.parameters()).device)
    batch["example_ids"] = torch.from_numpy(rows)
    kept = selection(model, batch, at_once=at_once).cpu().numpy()
    factors = None if weights is None else weights[rows[kept]]
    of_selector = selection.last.weights
    if of_selector is None:
        return Chosen(rows[kept], factors)
    return Chosen(rows[kept], of_selector if factors is None else factors * of_selector, labelled(batch))


def row_losses(losses: Tensor, places: Tensor) -> Tensor:
    """(B,) mean loss of each row, NaN for one without a labelled token, from what `token_losses` returns."""
    sums = torch.zeros(len(places), device=losses.device)
    sums.index_add_(0, places.nonzero()[:, 0], losses.detach())
    return sums / places.sum(dim=1)
