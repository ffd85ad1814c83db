"""What the charts share: plotly figures in plain dictionaries.

Colours are roles ("@pool", "@chosen", …) that charts.js replaces by the page's own CSS colours, so that charts follow
light, dark and print. One colour has one meaning throughout: grey is the pool, the accent is what was chosen.
Every text from the data goes through `label`, because plotly reads simple HTML tags in texts.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from pursuit.report.text import shorten, visible

Figure = dict[str, Any]

MOST_STEPS = 200  # points of one curve


def label(text: str, limit: int = 200) -> str:
    """Data text that is safe inside a plotly text."""
    return html.escape(visible(shorten(" ".join(text.split()), limit)), quote=False)


def axis(title: str = "", **changes: Any) -> Figure:
    return {
        "title": {"text": title, "standoff": 8}, "color": "@muted", "gridcolor": "@grid", "zeroline": False,
        "automargin": True, "fixedrange": True, **changes,
    }  # fmt: skip


def layout(height: int, xaxis: Figure, yaxis: Figure, **changes: Any) -> Figure:
    return {
        "height": height, "margin": {"l": 8, "r": 16, "t": 24, "b": 8, "pad": 4}, "showlegend": False,
        "paper_bgcolor": "@paper", "plot_bgcolor": "@paper", "font": {"size": 12, "color": "@ink"},
        "hoverlabel": {"bgcolor": "@paper", "bordercolor": "@muted", "font": {"color": "@ink"}, "align": "left"},
        "xaxis": xaxis, "yaxis": yaxis, **changes,
    }  # fmt: skip


def rounded(values: Any, digits: int = 4) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in np.asarray(values, dtype=np.float64)]


def thin(curve: Sequence[float], most: int = MOST_STEPS) -> tuple[list[int], list[float]]:
    """(steps from 1, values) of at most `most` evenly spaced points of a curve, with its first and its last."""
    steps = np.unique(np.linspace(0, len(curve) - 1, min(most, len(curve))).round().astype(np.int64))
    return [int(step) + 1 for step in steps], rounded(np.asarray(curve, dtype=np.float64)[steps])
