"""Training a model on chosen rows: by a command, by a function, or in a trainer of one's own that uses their weights.

from pursuit.finetune import FineTune, finetune
finetune(model, rows, "models/a", FineTune(epochs=3, weighted=True), selection=selection)

from pursuit.finetune import WeightedLossMixin
class Trainer(WeightedLossMixin, trl.SFTTrainer): ...
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pursuit.finetune.recipe import FineTune

if TYPE_CHECKING:
    from pursuit.finetune.result import Finetuned
    from pursuit.finetune.run import finetune
    from pursuit.finetune.weighted import WeightedLossMixin

_PLACES = {"Finetuned": "result", "WeightedLossMixin": "weighted", "finetune": "run"}

__all__ = ["FineTune", "Finetuned", "WeightedLossMixin", "finetune"]


def __getattr__(name: str) -> Any:
    """Import on first use: the recipe alone does not wait for torch."""
    if name in _PLACES:
        return getattr(importlib.import_module(f"pursuit.finetune.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'pursuit.finetune' has no attribute {name!r}")
