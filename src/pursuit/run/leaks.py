"""Rows of the pool that stand in a target set: a subset that holds them flatters every score on that set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Leaks:
    """Which rows of a pool of N rows equal a target row.

    Attributes:
        text: (N,) int64, the first target row with the same text (prompt and response, white space evened out); −1
            where there is none.
        prompt: (N,) int64, the first target row with the same prompt, whatever the response; −1 where there is none, or
            the row has no prompt.
    """

    text: np.ndarray
    prompt: np.ndarray

    @property
    def partner(self) -> np.ndarray:
        """(N,) int64, the target row with the same text, otherwise the one with the same prompt; −1 without."""
        return np.where(self.text >= 0, self.text, self.prompt)

    @property
    def leaked(self) -> np.ndarray:
        """(N,) bool: the same text, or the same prompt, as a target row."""
        return self.partner >= 0

    def among(self, rows: np.ndarray) -> Leaks:
        """Only those of some rows, (N,) bool."""
        return Leaks(np.where(rows, self.text, -1), np.where(rows, self.prompt, -1))


def find_leaks(rows: pa.Table, target_rows: pa.Table) -> Leaks:
    """Compare the pool's rows with the target's, O(N + M).

    Args:
        rows: N rows with the columns text_hash and prompt_hash (null without a prompt), as `EncodedPool.rows`.
        target_rows: M rows, likewise.
    """
    return Leaks(*(_first_equal(rows[column], target_rows[column]) for column in ("text_hash", "prompt_hash")))


def _first_equal(values: pa.ChunkedArray, targets: pa.ChunkedArray) -> np.ndarray:
    found = pc.index_in(values, targets.combine_chunks(), skip_nulls=True)
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def leak_messages(leaks: Leaks, rows: pa.Table, target_rows: pa.Table, *, dropped: bool = False) -> Iterator[str]:
    """A line for each target set (source of the target's rows) that rows of the pool stand in, with an example.

    Args:
        rows, target_rows: as given to `find_leaks`, with the columns source, path and line.
        dropped: whether the rows are left out.
    """
    leaked = np.flatnonzero(leaks.leaked)
    sets = np.array(target_rows["source"].to_pylist(), dtype=object)[leaks.partner[leaked]]
    for name in dict.fromkeys(sets):
        mine = leaked[sets == name]
        prompts = int(np.count_nonzero(leaks.text[mine] < 0))
        place = rows.slice(int(mine[0]), 1).to_pylist()[0]
        where = f"row {mine[0]}" if place["line"] is None else f"{place['path']}:{place['line']}"
        only = f" ({prompts:,} of them only with their prompt)" if prompts else ""
        what = "they are left out" if dropped else "a score on it would flatter; --drop-leaks leaves them out"
        stand = "stands" if len(mine) == 1 else "stand"
        counted = f"{len(mine):,} of {rows.num_rows:,} rows of the pool"
        yield f"{counted} {stand} in the target set {name}{only}, e.g. {where}; {what}."
