"""What the comparisons found, and what is in each choice, as plain values."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from experiments.textgames.data import TARGETS, planted_in, prompts_of
from pursuit import Run
from pursuit.compare import Compared
from pursuit.report.comparison import Interval, MethodScore
from pursuit.reporting import Choice
from pursuit.selectors import Selection


def comparison_facts(compared: Compared) -> dict[str, Any]:
    """Means, intervals and families of each metric; and every training on its own."""
    metrics = {}
    for block in compared.data.metrics:
        scores = [*block.scores, *([block.full] if block.full is not None else [])]
        metrics[block.name] = {"untrained": block.untrained, "methods": [_score(found) for found in scores]}
    return {
        "evaluation": compared.data.evaluation, "failed": [list(pair) for pair in compared.data.failed],
        "metrics": metrics, "trainings": compared.runs.to_pylist(),
    }  # fmt: skip


def chosen_facts(run: Run, data: Path) -> list[dict[str, Any]]:
    """Of every selection in the run: kinds, planted rows, rows chosen twice, residuals by iteration, seconds."""
    planted, texts = planted_in(data), prompts_of(data)
    pool = np.arange(len(planted))
    facts = [{"method": "pool", "rows": len(pool), **_composition(pool, planted, texts)}]
    for folder in sorted(path.parent for path in run.folder.selections.glob("*/choice.json")):
        choice, selection = Choice.load(folder), Selection.load(folder)
        facts.append({
            "method": choice.method, "rows": len(selection), "seed": choice.seed,
            "in_domain": bool(choice.parameters.get("in_domain")), "parameters": choice.parameters,
            "seconds": round(choice.seconds, 3), **_composition(selection.indices, planted, texts),
            "residuals": selection.diagnostics.get("residuals"), "warnings": selection.diagnostics.get("warnings"),
        })  # fmt: skip
    return facts


def machine() -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"), "system": platform.system(),
    }  # fmt: skip


def _composition(indices: np.ndarray, planted: list[Any], texts: list[tuple[str, str]]) -> dict[str, Any]:
    """Shares of the target's kinds and of wrong answers; rows whose text was chosen before."""
    rows = [planted[index] for index in indices]
    kinds = Counter(row["kind"] for row in rows)
    return {
        "kinds": dict(sorted(kinds.items())), "of_target_kinds": sum(kinds[kind] for kind in TARGETS) / len(rows),
        "wrong": sum(row["planted"] == "wrong" for row in rows) / len(rows),
        "repeated": len(rows) - len({texts[index] for index in indices}),
    }  # fmt: skip


def _score(found: MethodScore) -> dict[str, Any]:
    return {
        "method": found.method, "rows": found.rows, "seeds": found.seeds, "score": _interval(found.score),
        "to_random": None if found.to_random is None else _interval(found.to_random), "gain_kept": found.gain_kept,
        "selection_seconds": found.selection_seconds, "training_seconds": found.training_seconds,
        "families": dict(found.families),
    }  # fmt: skip


def _interval(value: Interval) -> list[float | None]:
    return [None if math.isnan(number) else number for number in value]
