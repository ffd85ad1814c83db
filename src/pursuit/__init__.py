"""Choose the few percent of an instruction-tuning data set that teach a model most, by their gradients.

    from pursuit import Run, Tagcos

    run = Run("runs/x", model="SmolLM2-135M", pool="pool.jsonl")
    result = run.select(Tagcos(clusters=100), budget=0.05, out="subset.jsonl")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pursuit.errors import PursuitError
    from pursuit.features import Features
    from pursuit.inspection import inspect
    from pursuit.run import Run
    from pursuit.selectors import Less, Random, Selection, Stratified, Tagcos

_PLACES = {
    "Features": "features", "Less": "selectors", "PursuitError": "errors", "Random": "selectors", "Run": "run",
    "Selection": "selectors", "Stratified": "selectors", "Tagcos": "selectors", "inspect": "inspection",
}  # fmt: skip

__all__ = ["Features", "Less", "PursuitError", "Random", "Run", "Selection", "Stratified", "Tagcos", "inspect"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import pursuit` alone does not wait for torch."""
    if name in _PLACES:
        return getattr(importlib.import_module(f"pursuit.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'pursuit' has no attribute {name!r}")
