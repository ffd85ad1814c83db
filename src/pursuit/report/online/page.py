"""The page of a choosing training as one HTML file that loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pursuit.report.online.data import OnlineData
from pursuit.report.online.plots import figures
from pursuit.report.rendering import render, write_page
from pursuit.report.text import count, duration, flatten, known, number, percent

MOST_ROWS = 200
SHOWN = (
    ("step", "step"), ("candidates", "candidates"), ("kept", "kept"), ("candidate_loss", "loss of candidates"),
    ("kept_loss", "loss of kept"), ("spread", "spread"), ("seconds", "s in selection"),
    ("flops_spent", "FLOPs spent"), ("flops_saved", "FLOPs saved"), ("dropped", "dropped"),
)  # fmt: skip


def write_online(data: OnlineData, path: Path) -> None:
    """Write the page to `path`, atomically; the same data give the same bytes."""
    write_page(online_page(data), path)


def online_page(data: OnlineData) -> str:
    """The page as HTML."""
    drawn = figures(data)
    context: dict[str, Any] = {
        "title": data.title, "model": data.model, "selector": data.selector, "tiles": _tiles(data),
        "findings": findings(data), "warnings": list(data.warnings), "table": _table(data),
        "setting_rows": flatten(data.settings), "version_rows": sorted(data.versions.items()),
    }  # fmt: skip
    every = [
        ("overview", "Overview", True), ("chosen", "What was kept", bool({"losses", "strata", "spread"} & set(drawn))),
        ("cost", "Cost", bool({"seconds", "flops"} & set(drawn))), ("steps", "Steps", bool(data.steps)),
        ("settings", "Settings", bool(context["setting_rows"] or context["version_rows"])),
    ]  # fmt: skip
    context["sections"] = [(identity, name) for identity, name, present in every if present]
    return render("online.html.j2", context, drawn, [])


def findings(data: OnlineData) -> list[str]:
    """What the log says about keeping and about cost, in sentences."""
    if not data.steps:
        return ["There are no logged steps."]
    said = [f"{percent(_share(data, 'kept', 'candidates'))} of the candidates were trained on."]
    losses = [data.total(name) / len(data.steps) for name in ("kept_loss", "candidate_loss")]
    if all(losses):
        way = "above" if losses[0] >= losses[1] else "below"
        said.append(f"The mean loss of what was kept is {number(abs(losses[0] - losses[1]))} {way} the candidates'.")
    share = _share(data, "seconds", "step_seconds")
    if known(share):
        said.append(f"Selection took {percent(share)} of the time of the steps.")
    saved, full = data.total("flops_saved"), data.total("flops_saved") + data.total("flops_spent")
    if full:
        said.append(
            f"By count it took {percent(1 - saved / full)} of the operations of training on all candidates"
            + (": more than it saved." if saved < 0 else ".")
        )
    if data.total("dropped"):
        said.append(f"{count(int(data.total('dropped')))} candidates were left out because their loss was not finite.")
    return said


def _share(data: OnlineData, part: str, whole: str) -> float:
    total = data.total(whole)
    return data.total(part) / total if total else float("nan")


def _tiles(data: OnlineData) -> list[dict[str, str]]:
    saved, spent = data.total("flops_saved"), data.total("flops_spent")
    share = _share(data, "seconds", "step_seconds")
    tiles = [
        ("Steps", count(int(data.steps[-1]["step"])) if data.steps else "0", "logged"),
        ("Kept", percent(_share(data, "kept", "candidates")), "of the candidates"),
        ("In selection", duration(data.total("seconds")), f"{percent(share)} of the time" if known(share) else ""),
        ("FLOPs saved", percent(saved / (saved + spent)) if saved + spent else "–", "of training on all"),
    ]
    return [{"name": name, "value": value.replace("-", "−"), "detail": detail} for name, value, detail in tiles]


def _table(data: OnlineData) -> dict[str, Any]:
    """A row a step, or every so many of them."""
    stride = -(-len(data.steps) // MOST_ROWS) or 1
    columns = [(name, shown) for name, shown in SHOWN if any(name in step for step in data.steps)]
    rows = [
        [number(step.get(name)).replace("-", "−") for name, _ in columns] for step in list(data.steps)[::stride]
    ]  # fmt: skip
    note = "Every step." if stride == 1 else f"One step in {stride}."
    return {"columns": [(shown, True) for _, shown in columns], "rows": rows, "note": note}
