"""Losses and features of examples at their last visit, by example id."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


class Memory:
    """What is known of each example; grows with the examples seen: 4 (d + 4) bytes each.

    `visits` counts how often an example was a candidate since it was last scored.
    """

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._losses = np.zeros(0, dtype=np.float32)
        self._visits = np.zeros(0, dtype=np.int32)
        self._features = np.zeros((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._place)

    def known(self, ids: np.ndarray) -> np.ndarray:
        """(n,) whether each was seen before."""
        return np.array([int(i) in self._place for i in ids], dtype=bool)

    def visits(self, ids: np.ndarray) -> np.ndarray:
        """(n,) visits of known examples since they were scored."""
        return self._visits[self._at(ids)]

    def visit(self, ids: np.ndarray) -> None:
        """Count one more visit of known examples."""
        self._visits[self._at(ids)] += 1

    def store(self, ids: np.ndarray, losses: np.ndarray, features: np.ndarray | None = None) -> None:
        """Remember (n,) losses and (n, d) features."""
        new = [int(i) for i in ids if int(i) not in self._place]
        for i in dict.fromkeys(new):
            self._place[i] = len(self._place)
        width = 0 if features is None else features.shape[1]
        self._grow(len(self._place), width)
        places = self._at(ids)
        self._losses[places], self._visits[places] = losses, 0
        if features is not None:
            self._features[places] = features

    def losses(self, ids: np.ndarray) -> np.ndarray:
        """(n,) float64 of known examples."""
        return self._losses[self._at(ids)].astype(np.float64)

    def features(self, ids: np.ndarray) -> np.ndarray:
        """(n, d) float32 of known examples."""
        return self._features[self._at(ids)]

    def mean_loss(self) -> float:
        """Mean of the finite losses; NaN if there is none."""
        losses = self._losses[: len(self)]
        finite = losses[np.isfinite(losses)]
        return float(finite.mean()) if len(finite) else float("nan")

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        if not self._place:
            return {}
        count = len(self)
        arrays = {"losses": self._losses, "visits": self._visits, "features": self._features}
        ids = torch.tensor(list(self._place), dtype=torch.int64)
        return {"memory_ids": ids, **{f"memory_{k}": torch.from_numpy(a[:count].copy()) for k, a in arrays.items()}}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        self.__init__()  # type: ignore[misc]
        if "memory_ids" not in state:
            return
        self._place = {int(i): place for place, i in enumerate(state["memory_ids"].tolist())}
        self._losses = state["memory_losses"].numpy().copy()
        self._visits = state["memory_visits"].numpy().copy()
        self._features = state["memory_features"].numpy().copy()

    def _at(self, ids: np.ndarray) -> np.ndarray:
        return np.array([self._place[int(i)] for i in ids], dtype=np.int64)

    def _grow(self, count: int, width: int) -> None:
        room = len(self._losses)
        if count > room:
            more = max(count, 2 * room) - room
            self._losses = np.pad(self._losses, (0, more))
            self._visits = np.pad(self._visits, (0, more))
            self._features = np.pad(self._features, ((0, more), (0, 0)))
        if width and self._features.shape[1] == 0:
            self._features = np.zeros((len(self._losses), width), dtype=np.float32)
