"""Matrices as solvers may meet them: served row by row, or lying elsewhere."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np


class Elsewhere:
    """A matrix whose rows lie elsewhere: passes run there, what is sent is pickled, and rows that are fetched count."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows, self.shape = rows, rows.shape
        self.passes = self.fetched = 0

    def __getitem__(self, rows):  # type: ignore[no-untyped-def]
        out = self._rows[rows].copy()
        self.fetched += len(out)
        return out

    def map_blocks(self, function, block_rows: int) -> Iterator[tuple]:  # type: ignore[no-untyped-def]
        self.passes += 1
        sent = pickle.loads(pickle.dumps(function))
        for start in range(0, len(self._rows), block_rows):
            rows = self._rows[start : start + block_rows]
            yield start, start + len(rows), pickle.loads(pickle.dumps(sent(rows, start)))
