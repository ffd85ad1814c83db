"""The chart of the weights."""

from __future__ import annotations

import numpy as np

from pursuit.report.plots.base import MOST_STEPS, Figure, axis, layout, rounded
from pursuit.report.text import percent
from pursuit.report.weights import WeightSummary


def concentration(weights: WeightSummary) -> Figure:
    """Share of the weight on the heaviest rows, beside the line of equal weights."""
    places = np.unique(np.linspace(0, len(weights.rows) - 1, min(MOST_STEPS, len(weights.rows))).round().astype(int))
    x, y = weights.rows[places], weights.weight[places]
    hover = [f"{percent(a)} of the rows carry {percent(b)} of the weight" for a, b in zip(x, y, strict=True)]
    return {
        "data": [
            {"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "hoverinfo": "skip",
             "line": {"color": "@pool", "width": 2}},
            {"type": "scatter", "mode": "lines", "x": [0, *rounded(x)], "y": [0, *rounded(y)], "text": ["", *hover],
             "hoverinfo": "text", "line": {"color": "@chosen", "width": 2.5}},
        ],
        "layout": layout(
            300, axis("heaviest rows, share of the chosen", range=[0, 1], tickformat=".0%", showgrid=False),
            axis("share of the weight", range=[0, 1.02], tickformat=".0%"), hovermode="closest",
            annotations=[{
                "x": 0.62, "y": 0.6, "text": "equal weights", "showarrow": False, "xanchor": "left", "yanchor": "top",
                "font": {"color": "@pool-text"},
            }],
        ),
    }  # fmt: skip
