"""The map of gradient space."""

from __future__ import annotations

import numpy as np

from pursuit.report.data import GradientMap
from pursuit.report.plots.base import Figure, axis, label, layout, rounded

MOST_POINTS = 5_000  # points of the map


def gradient_map(points: GradientMap) -> Figure:
    """The pool's sample in grey, what was chosen of it on top."""
    chosen = np.asarray(points.chosen, dtype=bool)
    parts = []
    marks = (("pool", ~chosen, 4, 0.45, 0), ("chosen", chosen, 6, 0.9, 0.75))
    for name, mask, size, opacity, rim in marks:
        rows = np.flatnonzero(mask)
        # An even stride keeps the share of the chosen and gives the same picture each time.
        room = max(1, MOST_POINTS * len(rows) // max(1, len(chosen))) if len(chosen) > MOST_POINTS else len(rows)
        if len(rows) > room:
            rows = rows[np.linspace(0, len(rows) - 1, room).astype(np.int64)]
        xy = np.asarray(points.xy, dtype=np.float64)[rows].reshape(-1, 2)
        parts.append({
            "type": "scatter", "mode": "markers", "name": name, "x": rounded(xy[:, 0]), "y": rounded(xy[:, 1]),
            "text": [_point_text(points, int(row), name) for row in rows], "hoverinfo": "text",
            "customdata": [] if points.rows is None else np.asarray(points.rows)[rows].tolist(),
            "marker": {"color": f"@{name}", "size": size, "opacity": opacity,
                       "line": {"color": "@paper", "width": rim}},
        })  # fmt: skip
    plain = {"showticklabels": False, "fixedrange": False, "showgrid": False}
    return {
        "data": parts,
        "layout": layout(
            520, axis("1st principal direction", **plain), axis("2nd principal direction", scaleanchor="x", **plain),
            dragmode="zoom", hovermode="closest",
        ),
    }  # fmt: skip


def _point_text(points: GradientMap, row: int, name: str) -> str:
    cluster = int(points.cluster[row]) if len(points.cluster) else -1
    head = f"{name}, cluster {cluster}" if cluster >= 0 else name
    head += "" if points.rows is None else f", row {points.rows[row]:,}"
    return f"{head}<br>{label(points.hover[row], 90)}" if len(points.hover) else head
