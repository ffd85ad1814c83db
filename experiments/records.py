"""What every experiment writes down: scores as plain values, what it ran on, and both as tables of Markdown."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pursuit.compare import Compared
from pursuit.files import read_json, write_json
from pursuit.report.comparison import Interval, MethodScore

Record = Mapping[str, Any]


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


def machine() -> dict[str, Any]:
    """What it ran on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS"), "system": platform.system(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }  # fmt: skip


def counted_seconds(path: Path, seconds: float) -> float:
    """CPU seconds of this process, and of those before it that filled the folder."""
    total = seconds + (read_json(path)["seconds"] if path.exists() else 0.0)
    write_json(path, {"seconds": total})
    return round(total, 1)


def score_table(metric: str, found: Record) -> str:
    """A row a method and budget: mean and interval, difference to random, share of the gain, each family."""
    families = list(dict.fromkeys(name for one in found["methods"] for name in one["families"]))
    lines = [
        ["", "rows", f"**{metric}**", "to random", "gain kept", *families],
        ["first model", "0", f"{found['untrained']:.3f}", "", "", *[""] * len(families)],
    ]
    for one in sorted(found["methods"], key=lambda one: one["rows"]):
        kept = one["gain_kept"]
        lines.append([
            one["method"], f"{one['rows']:,}", spread(one["score"]), spread(one["to_random"], sign=True),
            "" if kept is None else f"{kept:.0%}", *(f"{one['families'][name]:.3f}" for name in families),
        ])  # fmt: skip
    return markdown_table(lines)


def gradients_table(metric: str, comparisons: Mapping[str, Record]) -> str:
    """A row a method and budget, a column a kind of gradients: mean and interval."""
    scores = {
        kind: {(one["method"], one["rows"]): one["score"] for one in comparison["metrics"][metric]["methods"]}
        for kind, comparison in comparisons.items()
    }
    rows = dict.fromkeys(key for found in scores.values() for key in found)
    lines = [[f"**{metric}**", "rows", *comparisons]]
    for method, count in sorted(rows, key=lambda key: key[1]):
        cells = [spread(found.get((method, count))) for found in scores.values()]
        lines.append([method, f"{count:,}", *cells])
    return markdown_table(lines)


def columns_table(metric: str, comparisons: Mapping[str, Record], *, to_random: bool = False) -> str:
    """A row a method, a column a comparison: mean and interval, or those of the difference to random."""
    what = "to_random" if to_random else "score"
    found = {label: comparison["metrics"][metric] for label, comparison in comparisons.items()}
    scores = {label: {one["method"]: one[what] for one in block["methods"]} for label, block in found.items()}
    methods = dict.fromkeys(method for column in scores.values() for method in column)
    lines = [[f"**{metric}**{', to random' if to_random else ''}", *comparisons]]
    if not to_random:
        lines.append(["first model", *(f"{block['untrained']:.3f}" for block in found.values())])
    for method in methods:
        cells = [spread(column.get(method), sign=to_random) for column in scores.values()]
        if any(cells):
            lines.append([method, *cells])
    return markdown_table(lines)


def spread(value: list[float | None] | None, sign: bool = False) -> str:
    """Mean ± half of the interval."""
    if value is None:
        return ""
    mean, low, high = value
    text = f"{mean:+.3f}" if sign else f"{mean:.3f}"
    return text if low is None or high is None else f"{text} ± {(high - low) / 2:.3f}"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head."""
    head, *rest = lines
    marks = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, marks, *rest])


def part_of(study: str, path: Path) -> str:
    """The part of a text that stands under the study's name."""
    return path.read_text(encoding="utf-8").partition(f"# {study}\n")[2].partition("\n# ")[0].strip()


def _score(found: MethodScore) -> dict[str, Any]:
    return {
        "method": found.method, "rows": found.rows, "seeds": found.seeds, "score": _interval(found.score),
        "to_random": None if found.to_random is None else _interval(found.to_random), "gain_kept": found.gain_kept,
        "selection_seconds": found.selection_seconds, "training_seconds": found.training_seconds,
        "families": dict(found.families),
    }  # fmt: skip


def _interval(value: Interval) -> list[float | None]:
    return [None if math.isnan(number) else number for number in value]
