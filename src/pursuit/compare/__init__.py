"""Is the small subset as good as the whole pool, and better than one at random? Train on each, and score them.

from pursuit.compare import Comparison, compare
comparison = Comparison(methods=["tagcos", "less"], budgets=["5%"], evaluation=["heldout.jsonl"])
found = compare(run, comparison, "compare")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pursuit.compare.plan import Comparison

if TYPE_CHECKING:
    from pursuit.compare.comparing import Compared, compare

__all__ = ["Compared", "Comparison", "compare"]


def __getattr__(name: str) -> Any:
    """Import on first use: the settings alone do not wait for torch."""
    if name in ("Compared", "compare"):
        return getattr(importlib.import_module("pursuit.compare.comparing"), name)
    raise AttributeError(f"module 'pursuit.compare' has no attribute {name!r}")
