"""What is in each choice, as plain values."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from experiments.textgames.data import TARGETS, planted_in, prompts_of
from pursuit import Run
from pursuit.run.reporting import Choice
from pursuit.selectors import Selection


def chosen_facts(run: Run, data: Path, gradients: str) -> list[dict[str, Any]]:
    """Of every selection in the run: kinds, planted rows, rows chosen twice, residuals by iteration, seconds."""
    planted, texts = planted_in(data), prompts_of(data)
    pool = np.arange(len(planted))
    facts: list[dict[str, Any]] = []
    if not gradients:
        facts.append({"method": "pool", "rows": len(pool), **_composition(pool, planted, texts)})
    for folder in sorted(path.parent for path in run.folder.selections.glob("*/choice.json")):
        choice, selection = Choice.load(folder), Selection.load(folder)
        facts.append({
            "method": choice.method, "rows": len(selection), "seed": choice.seed, "gradients": gradients,
            "in_domain": bool(choice.parameters.get("in_domain")), "parameters": choice.parameters,
            "seconds": round(choice.seconds, 3), **_composition(selection.indices, planted, texts),
            "residuals": _rounded(selection.diagnostics.get("residuals")),
            "warnings": selection.diagnostics.get("warnings"),
        })  # fmt: skip
    return facts


def _rounded(curves: dict[str, list[float]] | None) -> dict[str, list[float]] | None:
    return curves and {name: [round(value, 4) for value in values] for name, values in curves.items()}


def _composition(indices: np.ndarray, planted: list[Any], texts: list[tuple[str, str]]) -> dict[str, Any]:
    """Shares of the target's kinds and of wrong answers; rows whose text was chosen before."""
    rows = [planted[index] for index in indices]
    kinds = Counter(row["kind"] for row in rows)
    return {
        "kinds": dict(sorted(kinds.items())), "of_target_kinds": sum(kinds[kind] for kind in TARGETS) / len(rows),
        "wrong": sum(row["planted"] == "wrong" for row in rows) / len(rows),
        "repeated": len(rows) - len({texts[index] for index in indices}),
    }  # fmt: skip
