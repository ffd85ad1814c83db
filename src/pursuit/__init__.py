"""Choose the few percent of an instruction-tuning data set that teach a model most, by their gradients.

from pursuit import Run, Tagcos

run = Run("runs/x", model="SmolLM2-135M", pool="pool.jsonl")
result = run.select(Tagcos(clusters=100), budget=0.05, out="subset.jsonl")

`Run` takes pool and model to features on disk, and as many selections from them as one likes. `Tagcos`, `Gtp`, `Less`,
`Rds`, `Omp`, `KCenter`, `Craig`, `D2`, `GradNorm`, `Loss`, `Perplexity`, `Longest`, `Random` and `Stratified` are the
methods; they also select from `Features` without a run, and give a `Selection`. `inspect` shows what a run would learn
from and what it costs; `export_subset` and `export_selection` write for trainers. What is wrong is told by a
`PursuitError`.

In rooms of their own: `pursuit.compare` (methods against each other), `pursuit.finetune` and `pursuit.evaluate` (train
on a subset, score the model), `pursuit.online` (choose inside of training), `pursuit.gradients`, `pursuit.solvers`.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

# peft imports bitsandbytes wherever it is installed, and that says at each start which kernel it goes without
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from pursuit.errors import PursuitError
    from pursuit.inspection import inspect
    from pursuit.run.export import export_selection, export_subset
    from pursuit.run.run import Run
    from pursuit.selectors import (
        D2,
        Craig,
        GradNorm,
        Gtp,
        KCenter,
        Less,
        Longest,
        Loss,
        Omp,
        Perplexity,
        Random,
        Rds,
        Selection,
        Stratified,
        Tagcos,
    )
    from pursuit.store.features import Features

_PLACES = {
    "Craig": "selectors", "D2": "selectors", "Features": "store.features", "GradNorm": "selectors", "Gtp": "selectors",
    "KCenter": "selectors", "Less": "selectors", "Longest": "selectors", "Loss": "selectors", "Omp": "selectors",
    "Perplexity": "selectors", "PursuitError": "errors", "Random": "selectors", "Rds": "selectors",
    "Run": "run.run", "Selection": "selectors", "Stratified": "selectors", "Tagcos": "selectors",
    "export_selection": "run.export", "export_subset": "run.export", "inspect": "inspection",
}  # fmt: skip

__all__ = [
    "Craig", "D2", "Features", "GradNorm", "Gtp", "KCenter", "Less", "Longest", "Loss", "Omp", "Perplexity",
    "PursuitError", "Random", "Rds", "Run", "Selection", "Stratified", "Tagcos", "export_selection", "export_subset",
    "inspect",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import on first use: `import pursuit` alone does not wait for torch."""
    if name in _PLACES:
        return getattr(importlib.import_module(f"pursuit.{_PLACES[name]}"), name)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("pursuit")
    raise AttributeError(f"module 'pursuit' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Also what is imported on first use, for completion and `help`."""
    return sorted({*globals(), *__all__, "__version__"})
