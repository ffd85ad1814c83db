"""Leaving rows of a pool out at selection, without computing anything again.

    keep = source_mask(features.rows, ["forum"])
    selection = widened(Gtp().select(narrowed(features, keep), 500), keep)

The choice is the one that the method makes on a pool file without these rows. (Only the warm-up had seen them.)
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pursuit.errors import SelectionError
from pursuit.run.leaks import find_leaks, leak_messages
from pursuit.selectors.selection import Selection
from pursuit.solvers.rows import RowView
from pursuit.store.features import Features

PAIRS = "near_duplicate_examples"  # the diagnostics that name rows: [row, row, cosine] by choice


def kept_rows(
    rows: pa.Table, target_rows: pa.Table | None = None, *, drop_sources: Sequence[str] = (), drop_leaks: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Which rows of a pool stay, (N,) bool; and what to tell about those that stand in the target.

    Args:
        rows: `EncodedPool.rows` of the pool.
        target_rows: the same of the target; without it nothing is said of leaks.
        drop_sources: names of sources to leave out.
        drop_leaks: leave out the rows with the text or the prompt of a target row, instead of only telling.

    Raises:
        SelectionError: a name is no source of the pool, there is no target to look for leaks in, or no row is left.
    """
    keep = source_mask(rows, drop_sources)
    if target_rows is None:
        if drop_leaks:
            raise SelectionError("drop_leaks: there is no target (--target FILE) that rows could stand in.")
        return keep, []
    leaks = find_leaks(rows, target_rows).among(keep)
    messages = list(leak_messages(leaks, rows, target_rows, dropped=drop_leaks))
    if drop_leaks:
        keep &= ~leaks.leaked
        if not keep.any():
            raise SelectionError("drop_leaks: every row that could be chosen stands in the target; none is left.")
    return keep, messages


def source_mask(rows: pa.Table, names: Sequence[str]) -> np.ndarray:
    """(N,) bool, False for the rows of the named sources.

    Args:
        rows: a table with the column source, as `Features.rows`.

    Raises:
        SelectionError: a name is no source of the pool, or no row is left.
    """
    known = [str(name) for name in pc.unique(rows["source"]).drop_null().to_pylist()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            listed = ", ".join(known[:20]) + (f" and {len(known) - 20:,} more" if len(known) > 20 else "")
            raise SelectionError(f"drop_sources: {name!r} is no source of the pool.{hint} The sources are {listed}.")
    keep = ~pc.fill_null(pc.is_in(rows["source"].cast(pa.string()), pa.array(names, pa.string())), False).to_numpy()
    if not keep.any():
        raise SelectionError(f"drop_sources: without {', '.join(names)} no row of the pool is left.")
    return keep


def narrowed(features: Features, keep: np.ndarray) -> Features:
    """The features of some rows, numbered from 0; nothing is copied but what is known of the rows.

    Args:
        keep: (N,) bool, the rows that stay.

    Raises:
        SelectionError: no row is left.
        ValueError: `keep` has another length.
    """
    keep = _checked(keep, features.num_rows)
    if keep.all():
        return features
    numbers = np.flatnonzero(keep)
    matrices = [RowView(features.checkpoint(number), numbers) for number in range(features.num_checkpoints)]
    columns = (values[:, keep] for values in (features.gradient_norms, features.losses, features.norms))
    return Features(matrices, features.weights, _filtered(features.rows, keep), *columns).on(features.engine)


def widened(selection: Selection, keep: np.ndarray) -> Selection:
    """A selection from narrowed features in the numbering of the whole pool.

    Args:
        keep: (N,) bool, as given to `narrowed`.

    Raises:
        ValueError: `keep` keeps another number of rows than the selection was made from.
    """
    keep = np.asarray(keep, dtype=bool)
    numbers = np.flatnonzero(keep)
    if len(numbers) != selection.num_rows:
        raise ValueError(f"keep leaves {len(numbers):,} rows; the selection was made from {selection.num_rows:,}")
    diagnostics: dict[str, Any] = dict(selection.diagnostics)
    if PAIRS in diagnostics:
        diagnostics[PAIRS] = {
            choice: [[int(numbers[a]), int(numbers[b]), cosine] for a, b, cosine in pairs]
            for choice, pairs in diagnostics[PAIRS].items()
        }
    return replace(selection, indices=numbers[selection.indices], num_rows=len(keep), diagnostics=diagnostics)


def _checked(keep: np.ndarray, rows: int) -> np.ndarray:
    keep = np.asarray(keep, dtype=bool)
    if keep.shape != (rows,):
        raise ValueError(f"keep must be ({rows},), one for each row; it is {keep.shape}")
    if not keep.any():
        raise SelectionError(f"none of the {rows:,} rows of the pool is left to choose from.")
    return keep


def _filtered(rows: pa.Table, keep: np.ndarray) -> pa.Table:
    """Some rows of a table, as if the others had never been there: dictionaries hold only the values in use."""
    rows = rows.filter(pa.array(keep))
    for number, field in enumerate(rows.schema):
        if pa.types.is_dictionary(field.type):
            values = rows[number].cast(field.type.value_type).dictionary_encode()
            rows = rows.set_column(number, field.name, values.unify_dictionaries())
    return rows
