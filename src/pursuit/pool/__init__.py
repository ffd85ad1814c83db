"""Reading the rows to choose from: formats, compressions, validation, provenance; and writing chosen rows."""

from __future__ import annotations

from pursuit.pool.examples import Example, Message, Refusal
from pursuit.pool.pool import Pool, no_usable_rows
from pursuit.pool.write import check_subset_path, check_table, write_subset

__all__ = [
    "Example", "Message", "Pool", "Refusal", "check_subset_path", "check_table", "no_usable_rows", "write_subset",
]  # fmt: skip
