"""The charts, as plotly figures in plain dictionaries.

Colours are roles ("@pool", "@chosen", …) that charts.js replaces by the page's own CSS colours, so that charts follow
light, dark and print. One colour has one meaning throughout: grey is the pool, the accent is what was chosen.
Every text from the data goes through `label`, because plotly reads simple HTML tags in texts.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pursuit.report.data import GradientMap
from pursuit.report.summary import ClusterRow, Distribution, SourceShare
from pursuit.report.text import count, number, percent, shorten, times, visible

Figure = dict[str, Any]

MOST_SOURCES = 20  # bars in one chart; the table has the rest
MOST_STEPS = 200  # points of one residual curve
MOST_CURVES = 60  # clusters drawn one by one
MOST_POINTS = 5_000  # points of the map
SHADES = (  # named curves: told apart by colour, dash and a label at the end
    ("@chosen", "solid"), ("@ink", "dash"), ("@pool", "solid"), ("@chosen", "dot"), ("@ink", "dot"),
)  # fmt: skip


def label(text: str, limit: int = 200) -> str:
    """Data text that is safe inside a plotly text."""
    return html.escape(visible(shorten(" ".join(text.split()), limit)), quote=False)


def _axis(title: str = "", **changes: Any) -> Figure:
    return {
        "title": {"text": title, "standoff": 8}, "color": "@muted", "gridcolor": "@grid", "zeroline": False,
        "automargin": True, "fixedrange": True, **changes,
    }  # fmt: skip


def _layout(height: int, xaxis: Figure, yaxis: Figure, **changes: Any) -> Figure:
    return {
        "height": height, "margin": {"l": 8, "r": 16, "t": 24, "b": 8, "pad": 4}, "showlegend": False,
        "paper_bgcolor": "@paper", "plot_bgcolor": "@paper", "font": {"size": 12, "color": "@ink"},
        "hoverlabel": {"bgcolor": "@paper", "bordercolor": "@muted", "font": {"color": "@ink"}, "align": "left"},
        "xaxis": xaxis, "yaxis": yaxis, **changes,
    }  # fmt: skip


def _rounded(values: Any, digits: int = 4) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in np.asarray(values, dtype=np.float64)]


def sources(shares: Sequence[SourceShare]) -> Figure:
    """Share in the pool beside share among the chosen, a pair of bars for each source."""
    shown = list(shares[:MOST_SOURCES])
    rest = shares[MOST_SOURCES:]
    names = [label(share.source or "(no source)", 26) for share in shown]
    if rest:
        shown.append(
            SourceShare(
                "", sum(s.pool for s in rest), sum(s.chosen for s in rest),
                sum(s.pool_share for s in rest), sum(s.chosen_share for s in rest),
            )
        )  # fmt: skip
        names.append(f"{count(len(rest))} others")
    rows = list(range(len(shown)))

    def bars(name: str, values: list[float], counts: list[int]) -> Figure:
        return {
            "type": "bar", "orientation": "h", "name": name, "x": _rounded(values), "y": rows,
            "marker": {"color": f"@{name}"}, "text": [percent(value) for value in values], "textposition": "outside",
            "textfont": {"color": f"@{name}-text"}, "cliponaxis": False, "hoverinfo": "text",
            "hovertext": [
                f"{title}<br>{name}: {count(amount)} ({percent(value)})"
                for title, amount, value in zip(names, counts, values, strict=True)
            ],
        }  # fmt: skip

    highest = max([share.pool_share for share in shown] + [share.chosen_share for share in shown])
    return {
        "data": [
            bars("pool", [share.pool_share for share in shown], [share.pool for share in shown]),
            bars("chosen", [share.chosen_share for share in shown], [share.chosen for share in shown]),
        ],
        "layout": _layout(
            90 + (46 if len(shown) <= 8 else 36) * len(shown),
            _axis("share of examples", range=[0, highest * 1.15], tickformat=".0%"),
            _axis(tickvals=rows, ticktext=names, autorange="reversed", showgrid=False, color="@ink"),
            bargap=0.28, bargroupgap=0.06,
        ),
    }  # fmt: skip


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
            "type": "scatter", "mode": "lines", "name": name, "x": _rounded(item.edges, 6),
            "y": _rounded(np.append(density, density[-1])), "line": {"shape": "hv", "color": f"@{name}", "width": 2},
            **changes,
        }  # fmt: skip

    shapes, notes = _medians(item, float(position[0]), float(position[-1]))
    axis = _axis(item.unit, showgrid=False, range=[float(position[0]), float(position[-1])])
    if item.log:
        ticks = _log_ticks(float(item.edges[0]), float(item.edges[-1]))
        axis |= {"type": "log", "tickangle": 0, "tickvals": ticks, "ticktext": [number(tick) for tick in ticks]}
    return {
        "data": [
            steps("pool", item.pool_share, fill="tozeroy", fillcolor="@pool-fill", hoverinfo="skip"),
            steps("chosen", item.chosen_share, text=[*hover, ""], hoverinfo="text"),
        ],
        "layout": _layout(
            260, axis, _axis("density", showticklabels=False, rangemode="tozero", showgrid=False),
            margin={"l": 8, "r": 16, "t": 56, "b": 8, "pad": 0}, hovermode="x", shapes=shapes, annotations=notes,
        ),
    }  # fmt: skip


def _medians(item: Distribution, start: float, end: float) -> tuple[list[Figure], list[Figure]]:
    """Lines and labels of both medians; the labels on either side of the lines, or both where there is room."""
    medians = {"pool": item.pool.median, "chosen": item.chosen.median}
    places = {name: math.log10(value) if item.log else value for name, value in medians.items()}
    middle = (sum(places.values()) / 2 - start) / (end - start)
    shapes, notes = [], []
    for name, height in (("pool", 1.17), ("chosen", 1.06)):
        right = middle < 0.3 or (middle < 0.7 and places[name] == max(places.values()))
        shapes.append({
            "type": "line", "xref": "x", "yref": "paper", "x0": medians[name], "x1": medians[name], "y0": 0,
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


def clusters(rows: Sequence[ClusterRow], pool_size: int, chosen: int) -> Figure:
    """Chosen against size, a point for each cluster, with the line of proportional choice."""
    sizes = [row.view.size for row in rows]
    largest = max(sizes)
    hover = [
        f"cluster {row.view.cluster}: {count(row.chosen)} of {count(row.view.size)} chosen"
        + (f"<br>mostly {label(row.top_source, 60)} ({percent(row.top_share)})" if row.top_source else "")
        for row in rows
    ]
    proportional = largest * chosen / max(1, pool_size)
    return {
        "data": [
            {"type": "scatter", "mode": "lines", "x": [0, largest], "y": [0, proportional], "hoverinfo": "skip",
             "line": {"color": "@pool", "width": 2}},
            {"type": "scatter", "mode": "markers", "x": sizes, "y": [row.chosen for row in rows], "text": hover,
             "hoverinfo": "text", "cliponaxis": False,
             "marker": {"color": "@chosen", "size": 8, "opacity": 0.75, "line": {"color": "@paper", "width": 1}}},
        ],
        "layout": _layout(
            320, _axis("size of the cluster in the pool", rangemode="tozero", tickformat=","),
            _axis("chosen from it", rangemode="tozero", tickformat=","),
            annotations=[{
                "x": largest * 0.97, "y": proportional * 0.97, "text": "proportional to size", "showarrow": False,
                "xanchor": "right", "yanchor": "bottom", "font": {"color": "@pool-text"},
            }],
        ),
    }  # fmt: skip


def thin(curve: Sequence[float], most: int = MOST_STEPS) -> tuple[list[int], list[float]]:
    """(steps from 1, values) of at most `most` evenly spaced points of a curve, with its first and its last."""
    steps = np.unique(np.linspace(0, len(curve) - 1, min(most, len(curve))).round().astype(np.int64))
    return [int(step) + 1 for step in steps], _rounded(np.asarray(curve, dtype=np.float64)[steps])


def _step_texts(name: str, steps: Sequence[int], values: Sequence[float]) -> list[str]:
    return [f"{name}, step {step}: {number(value)}" for step, value in zip(steps, values, strict=True)]


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


def curves(residuals: Mapping[str, Sequence[float]]) -> Figure:
    """Residual by step, one labelled line for each named curve."""
    lines, ends = [], []
    for place, (name, curve) in enumerate(residuals.items()):
        if not len(curve):
            continue
        color, dash = SHADES[place % len(SHADES)]
        x, y = thin(curve)
        lines.append({
            "type": "scatter", "mode": "lines" if len(x) > 1 else "markers", "x": x, "y": y, "hoverinfo": "text",
            "text": _step_texts(label(name, 40), x, y),
            "line": {"color": color, "width": 2.5, "dash": dash}, "marker": {"color": color},
        })  # fmt: skip
        ends.append((x[-1], y[-1], label(name, 30), "@chosen-text" if color == "@chosen" else "@ink"))
    return {"data": lines, "layout": _residual_layout(ends)}


def _residual_layout(ends: Sequence[tuple[int, float, str, str]]) -> Figure:
    return _layout(
        320, _axis("step of the pursuit", showgrid=False, tickformat=","),
        _axis("residual (1: nothing explained yet)", rangemode="tozero"), hovermode="closest",
        annotations=[
            {"x": x, "y": y, "text": text, "showarrow": False, "xanchor": "right", "yanchor": "bottom", "yshift": 3,
             "font": {"color": color}} for x, y, text, color in ends
        ],
    )  # fmt: skip


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
            "type": "scatter", "mode": "markers", "name": name, "x": _rounded(xy[:, 0]), "y": _rounded(xy[:, 1]),
            "text": [_point_text(points, int(row), name) for row in rows], "hoverinfo": "text",
            "marker": {"color": f"@{name}", "size": size, "opacity": opacity,
                       "line": {"color": "@paper", "width": rim}},
        })  # fmt: skip
    plain = {"showticklabels": False, "fixedrange": False, "showgrid": False}
    return {
        "data": parts,
        "layout": _layout(
            520, _axis("1st principal direction", **plain), _axis("2nd principal direction", scaleanchor="x", **plain),
            dragmode="zoom", hovermode="closest",
        ),
    }  # fmt: skip


def _point_text(points: GradientMap, row: int, name: str) -> str:
    cluster = int(points.cluster[row]) if len(points.cluster) else -1
    head = f"{name}, cluster {cluster}" if cluster >= 0 else name
    return f"{head}<br>{label(points.hover[row], 90)}" if len(points.hover) else head


def factor_text(share: SourceShare) -> str:
    """How much a source is over- or under-represented among the chosen."""
    return times(share.factor) if share.pool else "not in the pool"
