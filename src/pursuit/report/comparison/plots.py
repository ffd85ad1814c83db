"""Charts of the comparison. Grey is random, black the whole pool; every other method keeps one colour and one sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pursuit.report.comparison.data import FULL, RANDOM, MethodScore, MetricScores
from pursuit.report.comparison.findings import at, interval_text
from pursuit.report.plots.base import Figure, axis, label, layout, rounded
from pursuit.report.text import duration, known, percent

SIGNS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
COLOURS = 7  # @method-1 … in the style sheet
TIMES = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10800, 36000, 108000, 360000, 1080000)  # ticks, in seconds


def look(method: str, methods: Sequence[str]) -> tuple[str, str]:
    """(colour, sign) of a method."""
    if method == RANDOM:
        return "@pool-text", "circle-open"
    others = [name for name in methods if name not in (RANDOM, FULL)]
    if method not in others:
        return "@ink", "star-diamond"  # the whole pool
    place = others.index(method)
    return f"@method-{place % COLOURS + 1}", SIGNS[place % len(SIGNS)]


def _number(value: float | None) -> float | None:
    return rounded([value], 6)[0] if value is not None and known(value) else None


def _whiskers(scores: Sequence[MethodScore], color: str) -> Figure:
    above = [_number(s.score.high - s.score.mean) if s.score.known else None for s in scores]
    below = [_number(s.score.mean - s.score.low) if s.score.known else None for s in scores]
    return {
        "type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": color, "thickness": 1.5,
        "width": 5,
    }  # fmt: skip


def _said(metric: MetricScores, score: MethodScore) -> str:
    head = f"{label(score.method, 60)}, {percent(score.budget)}"
    lines = [head, f"{label(metric.name, 60)} {interval_text(score.score)}"]
    if score.to_random is not None:
        lines.append(f"against random {interval_text(score.to_random, True)}")
    if score.gain_kept is not None:
        lines.append(f"{percent(score.gain_kept)} of the full gain")
    if score.seconds is not None:
        lines.append(duration(score.seconds))
    return "<br>".join(lines)


def bars(metric: MetricScores, budget: float, methods: Sequence[str]) -> Figure:
    """Scores at one budget, the best on top: bars from the untrained model's score, with intervals."""
    scores = [*at(metric, budget), *([metric.full] if metric.full is not None else [])]
    start = metric.untrained if known(metric.untrained) else 0.0
    rows = list(range(len(scores)))
    values = [score.score for score in scores]
    ends = [end for value in values for end in (value.mean, value.low, value.high) if known(end)] + [start or 0.0]
    margin = 0.08 * (max(ends) - min(ends) or 1.0)
    return {
        "data": [{
            "type": "bar", "orientation": "h", "y": rows, "base": [_number(start)] * len(rows),
            "x": [_number(value.mean - (start or 0.0)) for value in values], "hoverinfo": "text",
            "textposition": "none", "text": [_said(metric, score) for score in scores],
            "marker": {"color": [look(score.method, methods)[0] for score in scores], "opacity": 0.85},
            "error_x": _whiskers(scores, "@ink"),
        }],
        "layout": layout(
            80 + 34 * len(scores),
            axis(label(metric.unit or metric.name, 60), range=[min(ends) - margin, max(ends) + margin]),
            axis(tickvals=rows, ticktext=[label(score.method, 26) for score in scores], autorange="reversed",
                 showgrid=False, color="@ink"),
            bargap=0.35, shapes=[_line(start or 0.0)],
        ),
    }  # fmt: skip


def _line(value: float) -> Figure:
    return {
        "type": "line", "xref": "x", "yref": "paper", "x0": value, "x1": value, "y0": 0, "y1": 1,
        "line": {"color": "@muted", "width": 1},
    }  # fmt: skip


def curves(metric: MetricScores, methods: Sequence[str]) -> Figure:
    """Score over the budget, a line a method; the whole pool and the untrained model are level lines."""
    budgets = sorted({score.budget for score in metric.scores})
    lines, notes = [], []
    for method in methods:
        scores = sorted((s for s in metric.scores if s.method == method), key=lambda s: s.budget)
        if not scores:
            continue
        color, sign = look(method, methods)
        lines.append({
            "type": "scatter", "mode": "lines+markers", "x": [_number(s.budget) for s in scores],
            "y": [_number(s.score.mean) for s in scores], "text": [_said(metric, s) for s in scores],
            "hoverinfo": "text", "line": {"color": color, "width": 2, "dash": "dash" if method == RANDOM else "solid"},
            "marker": {"color": color, "symbol": sign, "size": 9}, "error_y": _whiskers(scores, color),
            "name": label(method, 40),
        })  # fmt: skip
    whole = metric.full.score.mean if metric.full else None
    for name, value in (("whole pool", whole), ("untrained", metric.untrained)):
        if value is not None and known(value):
            notes.append(_level(name, value, budgets))
    lines += [line for line, _ in notes]
    ticks = {"tickvals": [_number(budget) for budget in budgets], "ticktext": [percent(budget) for budget in budgets]}
    return {
        "data": lines,
        "layout": layout(
            380, axis("budget, share of the pool (log scale)", type="log", showgrid=False, tickangle=0, **ticks),
            axis(label(metric.unit or metric.name, 60)), annotations=[note for _, note in notes], hovermode="closest",
            **_legend(),
        ),
    }  # fmt: skip


def _legend() -> dict[str, Any]:
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": "@ink"}}
    return {"showlegend": True, "legend": legend}


def _level(name: str, value: float, budgets: Sequence[float]) -> tuple[Figure, Figure]:
    color = "@ink" if name == "whole pool" else "@muted"
    line = {
        "type": "scatter", "mode": "lines", "x": [_number(budgets[0]), _number(budgets[-1])], "y": [_number(value)] * 2,
        "line": {"color": color, "width": 1.5, "dash": "dot"}, "hoverinfo": "skip", "showlegend": False,
    }  # fmt: skip
    note = {
        "x": 0, "xref": "paper", "y": _number(value), "text": name, "showarrow": False, "xanchor": "left",
        "yanchor": "bottom", "font": {"color": color},
    }  # fmt: skip
    return line, note


def cost(metric: MetricScores, methods: Sequence[str]) -> Figure | None:
    """Score against the seconds of selecting and training together; None where no times are known."""
    traces: list[Figure] = []
    seconds: list[float] = []
    for method in [*methods, FULL]:
        found = [metric.full] if method == FULL and metric.full else [s for s in metric.scores if s.method == method]
        scores = sorted((s for s in found if s.seconds), key=lambda s: s.budget)
        if not scores:
            continue
        color, sign = look(method, methods)
        seconds += [score.seconds or 0.0 for score in scores]
        traces.append({
            "type": "scatter", "mode": "lines+markers" if len(scores) > 1 else "markers", "name": label(method, 40),
            "x": [_number(s.seconds) for s in scores], "y": [_number(s.score.mean) for s in scores],
            "text": [_said(metric, s) for s in scores], "hoverinfo": "text", "error_y": _whiskers(scores, color),
            "line": {"color": color, "width": 1, "dash": "dot"}, "marker": {"color": color, "symbol": sign, "size": 10},
        })  # fmt: skip
    if not traces:
        return None
    ticks = [value for value in TIMES if min(seconds) / 3 <= value <= max(seconds) * 3]
    across = axis("time of selecting and training (log scale)", type="log", tickangle=0, tickvals=ticks,
                  ticktext=[duration(value) for value in ticks])  # fmt: skip
    return {
        "data": traces,
        "layout": layout(380, across, axis(label(metric.unit or metric.name, 60)), hovermode="closest", **_legend()),
    }
