"""Charts of one quantity in the pool and among the chosen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pursuit.report.plots.base import Figure, axis, layout, rounded
from pursuit.report.summary import Distribution
from pursuit.report.text import number, percent


def distribution(item: Distribution) -> Figure:
    """Densities of the pool (filled) and of the chosen (line) over common bins."""
    widths = np.diff(np.log10(item.edges) if item.log else item.edges)
    position = np.log10(item.edges) if item.log else item.edges
    hover = [
        f"{number(low)} to {number(high)}<br>pool {percent(p)}, chosen {percent(c)}"
        for low, high, p, c in zip(item.edges, item.edges[1:], item.pool_share, item.chosen_share, strict=False)
    ]

    def steps(name: str, share: np.ndarray, **changes: Any) -> Figure:
        density = share / widths
        return {
            "type": "scatter", "mode": "lines", "name": name, "x": rounded(item.edges, 6),
            "y": rounded(np.append(density, density[-1])), "line": {"shape": "hv", "color": f"@{name}", "width": 2},
            **changes,
        }  # fmt: skip

    shapes, notes = _medians(item, float(position[0]), float(position[-1]))
    across = axis(item.unit, showgrid=False, range=[float(position[0]), float(position[-1])])
    if item.log:
        ticks = _log_ticks(float(item.edges[0]), float(item.edges[-1]))
        across |= {"type": "log", "tickangle": 0, "tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}
    return {
        "data": [
            steps("pool", item.pool_share, fill="tozeroy", fillcolor="@pool-fill", hoverinfo="skip"),
            steps("chosen", item.chosen_share, text=[*hover, ""], hoverinfo="text"),
        ],
        "layout": layout(
            260, across, axis("density", showticklabels=False, rangemode="tozero", showgrid=False),
            margin={"l": 8, "r": 16, "t": 56, "b": 8, "pad": 0}, hovermode="x", shapes=shapes, annotations=notes,
        ),
    }  # fmt: skip


def _medians(item: Distribution, start: float, end: float) -> tuple[list[Figure], list[Figure]]:
    """Lines and labels of both medians; the labels on either side of the lines, or both where there is room."""
    medians = {"pool": item.pool.median, "chosen": item.chosen.median}
    inside = {name: min(max(value, item.edges[0]), item.edges[-1]) for name, value in medians.items()}
    places = {name: math.log10(value) if item.log else value for name, value in inside.items()}
    middle = (sum(places.values()) / 2 - start) / (end - start)
    shapes, notes = [], []
    for name, height in (("pool", 1.17), ("chosen", 1.06)):
        right = middle < 0.3 or (middle < 0.7 and places[name] == max(places.values()))
        shapes.append({
            "type": "line", "xref": "x", "yref": "paper", "x0": float(inside[name]), "x1": float(inside[name]), "y0": 0,
            "y1": height - 0.04, "line": {"color": f"@{name}-text", "width": 1.5, "dash": "dot"},
        })  # fmt: skip
        notes.append({
            "x": (max if right else min)(places.values()) if not 0.3 <= middle < 0.7 else places[name], "xref": "x",
            "y": height, "yref": "paper", "yanchor": "middle", "showarrow": False,
            "xanchor": "left" if right else "right", "xshift": 3 if right else -3,
            "text": f"{name}: median {number(medians[name])}", "font": {"color": f"@{name}-text", "size": 12},
        })  # fmt: skip
    return shapes, notes


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within [low, high]: 1, 2, 5, 10 … over few decades, powers of ten over many."""
    digits = (1, 2, 5) if high / low < 1000 else (1, 3) if high / low < 1e4 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for power in powers for digit in digits if low <= (value := float(f"{digit}e{power}")) <= high]
