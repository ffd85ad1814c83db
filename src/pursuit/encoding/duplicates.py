"""Rows of a pool that say the same."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def duplicate_groups(rows: pa.Table) -> list[np.ndarray]:
    """Exact duplicates: groups of two or more rows with the same rendered text (white space evened out).

    Args:
        rows: a table with the column text_hash, as `EncodedPool.rows`.

    Returns:
        Positions in `rows`, ascending within a group; groups in the order of their first row.
    """
    codes = rows["text_hash"].combine_chunks().dictionary_encode().indices.to_numpy()
    by_code = np.argsort(codes, kind="stable")
    groups = np.split(by_code, np.flatnonzero(np.diff(codes[by_code])) + 1) if len(codes) else []
    return sorted((group for group in groups if len(group) > 1), key=lambda group: int(group[0]))
