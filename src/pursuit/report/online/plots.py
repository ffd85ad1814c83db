"""Charts over the steps of a training that chose from its batches. Of long trainings, means of equal spans of steps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pursuit.report.online.data import OnlineData
from pursuit.report.plots.base import Figure, axis, layout, rounded
from pursuit.report.text import duration, number

MOST_SPANS = 120
COLOURS = 7  # @method-1 … in the style sheet
LEGEND = {"orientation": "h", "traceorder": "normal", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": "@ink"}}


def figures(data: OnlineData) -> dict[str, Figure]:
    """Those for which something is known."""
    found = {
        "losses": lines(data, {"candidates": "candidate_loss", "kept": "kept_loss"}, "mean loss of the examples"),
        "strata": _strata(data),
        "spread": lines(data, {"spread": "spread"}, "mean distance"),
        "seconds": lines(data, {"whole step": "step_seconds", "selection": "seconds"}, "seconds a step"),
        "flops": _flops(data),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def lines(data: OnlineData, names: dict[str, str], unit: str) -> Figure | None:
    """A line for each known figure, by the names they are shown under."""
    known = {shown: data.values(name) for shown, name in names.items() if np.isfinite(data.values(name)).any()}
    if not known:
        return None
    across = spans(data.values("step"))
    drawn = [_line(shown, across, spans(values), unit) for shown, values in known.items()]
    from_zero = unit.startswith("seconds")
    return {"data": drawn, "layout": _layout(unit, len(drawn) > 1, "tozero" if from_zero else "normal")}


def _line(name: str, across: list[float | None], values: list[float | None], unit: str) -> Figure:
    color = "@pool-text" if name in ("candidates", "whole step", "training on all") else "@chosen"
    return {
        "type": "scatter", "mode": "lines+markers" if len(across) < 30 else "lines", "name": name, "x": across,
        "y": values, "hoverinfo": "text", "text": _said(name, across, values, unit), "connectgaps": False,
        "line": {"color": color, "width": 2, "dash": "dash" if color == "@pool-text" else "solid"},
        "marker": {"color": color, "size": 5},
    }  # fmt: skip


def _said(name: str, across: Sequence[float | None], values: Sequence[float | None], unit: str) -> list[str]:
    def told(value: float | None) -> str:
        return duration(value) if unit.startswith("seconds") else number(value)

    return [f"{name}, step {number(step)}: {told(value)}" for step, value in zip(across, values, strict=True)]


def _strata(data: OnlineData) -> Figure | None:
    """Kept of each stratum, stacked; all that is kept where there are no strata."""
    names = data.strata or (["kept"] if data.steps else [])
    if not names:
        return None
    across, bars = spans(data.values("step")), []
    for place, name in enumerate(names):
        shown = "kept" if name == "kept" else _stratum(place, len(names))
        values = spans(data.values(name))
        bars.append({
            "type": "bar", "name": shown, "x": across, "y": values, "hoverinfo": "text", "textposition": "none",
            "text": _said(shown, across, values, "kept"),
            "marker": {"color": "@chosen" if len(names) == 1 else f"@method-{place % COLOURS + 1}"},
        })  # fmt: skip
    return {"data": bars, "layout": _layout("examples kept", len(bars) > 1, barmode="stack", bargap=0.1)}


def _stratum(place: int, count: int) -> str:
    extreme = {0: ", easiest", count - 1: ", hardest"}.get(place, "") if count > 1 else ""
    return f"stratum {place + 1}{extreme}"


def _flops(data: OnlineData) -> Figure | None:
    """Operations so far, beside those of training on all candidates."""
    spent, saved = np.array(data.values("flops_spent")), np.array(data.values("flops_saved"))
    if not np.isfinite(spent).any():
        return None
    across = _last(data.values("step"))
    totals = {"training on all": np.nancumsum(spent + saved), "spent": np.nancumsum(spent)}
    drawn = [_line(name, across, _last(values.tolist()), "operations") for name, values in totals.items()]
    return {"data": drawn, "layout": _layout("operations so far", True)}


def _layout(unit: str, legend: bool, rangemode: str = "tozero", **changes: object) -> Figure:
    shown = {"showlegend": True, "legend": LEGEND} if legend else {}
    return layout(
        300, axis("step", showgrid=False, tickformat=",d"), axis(unit, rangemode=rangemode), hovermode="closest",
        **shown, **changes,
    )  # fmt: skip


def _edges(count: int) -> np.ndarray:
    return np.linspace(0, count, min(MOST_SPANS, count) + 1).round().astype(np.int64)


def spans(values: Sequence[float]) -> list[float | None]:
    """Means of at most MOST_SPANS equal spans; None where nothing is known."""
    array, edges = np.asarray(values, dtype=np.float64), _edges(len(values))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a span of nothing but NaN
        means = [float(np.nanmean(array[low:high])) for low, high in pairwise(edges)]
    return [rounded([mean])[0] if np.isfinite(mean) else None for mean in means]


def _last(values: Sequence[float]) -> list[float | None]:
    """The last of each span."""
    return [rounded([values[edge - 1]], 5)[0] for edge in _edges(len(values))[1:]]
