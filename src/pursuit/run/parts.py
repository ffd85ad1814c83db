"""A pool that grew: the rows it began with and those appended later, seen as one.

Every part has its own tokens and features on disk, made once; here they are only put one below the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pursuit.encoding import EncodedPool
from pursuit.pool.examples import Refusal
from pursuit.store.features import Features, RowMatrix
from pursuit.store.rows import row_numbers


class JoinedRows:
    """The encoded rows of several parts, one after another; itself `EncodedRows`.

    Args:
        parts: at least one.
        first_rows: the ordinal in the whole pool of each part's first row.
    """

    def __init__(self, parts: Sequence[EncodedPool], first_rows: Sequence[int]) -> None:
        self.parts = list(parts)
        self._first = np.cumsum([0, *map(len, parts)])
        places = zip(parts, self._first[:-1], first_rows, strict=True)
        self.rows = pa.concat_tables(
            [_shifted(part.rows, int(index), row) for part, index, row in places]
        ).unify_dictionaries()
        self.lengths: NDArray[np.int32] = np.concatenate([part.lengths for part in parts])
        self.response_lengths: NDArray[np.int32] = np.concatenate([part.response_lengths for part in parts])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """(L,) token ids and (L,) response mask of one row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        part = int(np.searchsorted(self._first, index, side="right")) - 1
        return self.parts[part][index - int(self._first[part])]

    @property
    def refused(self) -> list[Refusal]:
        """The rows that were skipped, part after part."""
        return [refusal for part in self.parts for refusal in part.refused]


def _shifted(rows: pa.Table, index: int, row: int) -> pa.Table:
    for name, offset in (("index", index), ("row", row)):
        field = rows.schema.field(name)
        rows = rows.set_column(rows.column_names.index(name), field, pc.add(rows[name], offset).cast(field.type))
    return rows


class _Below:
    """(N, d) the rows of several matrices, one below the other."""

    def __init__(self, matrices: Sequence[RowMatrix]) -> None:
        self.matrices = list(matrices)

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(matrix.shape[0] for matrix in self.matrices)])

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self._first[-1]), self.matrices[0].shape[1])

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        numbers = row_numbers(rows, self.shape[0])
        owner = np.searchsorted(self._first, numbers, side="right") - 1
        if len(numbers) and (owner == owner[0]).all() and isinstance(rows, slice):  # within one part: no copy
            start = int(numbers[0] - self._first[owner[0]])
            return self.matrices[owner[0]][start : start + len(numbers)] if rows.step in (None, 1) else self[numbers]
        found = np.empty((len(numbers), self.shape[1]), np.float32)
        for part in np.unique(owner):
            mine = np.flatnonzero(owner == part)
            found[mine] = self.matrices[part][numbers[mine] - self._first[part]]
        return found


def joined_features(parts: Sequence[Features], rows: pa.Table) -> Features:
    """The features of all parts as one, (N₁ + N₂ + …, d) a checkpoint; nothing is copied."""
    first = parts[0]
    if len(parts) == 1:
        return first
    matrices = [_Below([part.checkpoint(t) for part in parts]) for t in range(first.num_checkpoints)]
    names = ("gradient_norms", "losses", "norms")
    columns = [np.concatenate([getattr(part, name) for part in parts], axis=1) for name in names]
    return Features(matrices, first.weights, rows, *columns)
