"""Charts of how a pursuit went: residual and support by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pursuit.report.plots.base import Figure, axis, label, layout, thin
from pursuit.report.summary import ClusterRow
from pursuit.report.text import count, number

MOST_CURVES = 60  # clusters drawn one by one
MOST_BARS = 120
COLOURS = ("@chosen", "@ink", "@warn", "@pool-text")  # of goals; what belongs to one goal has one colour
DASHES = ("solid", "dash", "dot")  # of methods


def _step_texts(name: str, steps: Sequence[int], values: Sequence[float], step: str = "step") -> list[str]:
    return [f"{name}, {step} {place}: {number(value)}" for place, value in zip(steps, values, strict=True)]


def cluster_residuals(rows: Sequence[ClusterRow]) -> Figure | None:
    """Residual by step: one thin line a cluster (the largest ones if there are many) and their median."""
    drawn = [row for row in rows if len(row.view.residuals)]
    if not drawn:
        return None
    lines = []
    for row in drawn[:MOST_CURVES]:
        x, y = thin(row.view.residuals)
        lines.append({
            "type": "scatter", "mode": "lines" if len(x) > 1 else "markers", "x": x, "y": y, "hoverinfo": "text",
            "text": _step_texts(f"cluster {row.view.cluster}", x, y),
            "line": {"color": "@chosen-faint", "width": 1}, "marker": {"color": "@chosen-faint"},
        })  # fmt: skip
    # The median runs as far as at least half of the clusters do; beyond it would be about a few large ones.
    length = int(np.median([len(row.view.residuals) for row in drawn]))
    table = np.full((len(drawn), max(1, length)), np.nan)
    for values, row in zip(table, drawn, strict=True):
        values[: len(row.view.residuals)] = row.view.residuals[: len(values)]
    x, y = thin(np.nanmedian(table, axis=0).tolist())
    lines.append({
        "type": "scatter", "mode": "lines+markers" if len(x) < 3 else "lines", "x": x, "y": y, "hoverinfo": "text",
        "text": _step_texts("median of clusters", x, y),
        "line": {"color": "@chosen", "width": 3}, "marker": {"color": "@chosen"},
    })  # fmt: skip
    return {"data": lines, "layout": _residual_layout([(x[-1], y[-1], "median", "@chosen-text")])}


def curves(residuals: Mapping[str, Sequence[float]], step: str) -> Figure:
    """Residual by step, one labelled line for each named curve."""
    lines, notes = [], []
    methods, goals = [list(dict.fromkeys(name.partition(": ")[part] for name in residuals)) for part in (0, 2)]
    for name, curve in residuals.items():
        if not len(curve):
            continue
        method, _, goal = name.partition(": ")
        color = COLOURS[goals.index(goal) % len(COLOURS)]
        dash = DASHES[methods.index(method) % len(DASHES)]
        x, y = thin(curve)
        lines.append({
            "type": "scatter", "mode": "lines+markers" if len(x) < 30 and dash == "solid" else "lines", "x": x, "y": y,
            "hoverinfo": "text", "text": _step_texts(label(name, 60), x, y, step),
            "line": {"color": color, "width": 2.5, "dash": dash}, "marker": {"color": color, "size": 5},
        })  # fmt: skip
        notes.append((x[-1], y[-1], label(name, 60), "@chosen-text" if color == "@chosen" else color))
    return {"data": lines, "layout": _residual_layout(notes, step)}


def support_changes(changes: Mapping[str, Sequence[int]]) -> Figure:
    """Rows that entered the choice in each iteration, side by side for several pursuits."""
    bars = []
    for place, (name, entered) in enumerate(list(changes.items())[: len(COLOURS)]):
        steps = np.unique(np.linspace(0, len(entered) - 1, min(MOST_BARS, len(entered))).round().astype(np.int64))
        bars.append({
            "type": "bar", "x": [int(step) + 1 for step in steps], "y": [int(entered[step]) for step in steps],
            "hoverinfo": "text", "textposition": "none", "marker": {"color": COLOURS[place]},
            "text": [f"{label(name, 60)}, iteration {step + 1}: {count(int(entered[step]))} entered" for step in steps],
        })  # fmt: skip
    across = axis("rows that entered", rangemode="tozero", tickformat=",d")
    return {"data": bars, "layout": _layout_of_steps("iteration", across, height=240, bargap=0.35)}


def _layout_of_steps(step: str, yaxis: Figure, height: int = 320, **changes: Any) -> Figure:
    title = "iteration" if step == "iteration" else "step of the pursuit"
    across = axis(title, showgrid=False, tickformat=",d")
    return layout(height, across, yaxis, hovermode="closest", **changes)


def _residual_layout(notes: Sequence[tuple[int, float, str, str]], step: str = "step") -> Figure:
    return _layout_of_steps(
        step, axis("residual (1: nothing explained yet)", rangemode="tozero"),
        annotations=[
            {"x": x, "y": y, "text": text, "showarrow": False, "xanchor": "right", "yanchor": "bottom", "yshift": 3,
             "font": {"color": color}} for x, y, text, color in notes
        ],
    )  # fmt: skip
