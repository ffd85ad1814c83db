"""Encoded rows made in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class KnownRows:
    """Rows of given tokens; of each, the tokens from a share of its length on are the response, or from a place on."""

    def __init__(self, ids: Sequence[Sequence[int]], learnt_from: float | Sequence[int] = 0.5) -> None:
        self.ids = [np.asarray(row, dtype=np.int32) for row in ids]
        self.lengths = np.asarray([len(row) for row in self.ids], dtype=np.int32)
        if isinstance(learnt_from, float):
            learnt_from = [int(learnt_from * len(row)) for row in self.ids]
        self.starts = learnt_from

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        row = self.ids[index]
        return row, np.arange(len(row)) >= self.starts[index]


def random_rows(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> KnownRows:
    """Rows of random tokens, the second half of each being the response."""
    generator = np.random.default_rng(seed)
    return KnownRows([generator.integers(3, vocabulary, length).tolist() for length in lengths])
