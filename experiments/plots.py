"""Small SVG charts of an experiment's results, for pages that are read where no script runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from experiments.records import Record
from pursuit.files import write_text

WIDTH, LEFT, RIGHT, TOP, ROW, BOTTOM = 720, 230, 60, 12, 22, 46
INK, MUTED, CHOSEN = "#777", "#999", "#2f7ed8"  # legible on white and on black
LINES = ("#2f7ed8", "#d8862f", "#3a9d5d", "#b04fb0", "#888888")
FONT = 'font-family="sans-serif" font-size="12"'


def score_chart(metric: str, found: Record, path: Path) -> None:
    """A dot a method and budget with its 95 % interval, the best on top; dashed: the first model, and all rows."""
    sign = -1 if metric != "loss" else 1
    scores = sorted(found["methods"], key=lambda one: sign * one["score"][0])
    marks = [("first model", found["untrained"])]
    marks += [("all rows", one["score"][0]) for one in scores if one["method"] == "full"]
    ends = [value for one in scores for value in one["score"] if value is not None] + [value for _, value in marks]
    low, high = min(ends), max(ends)
    bottom = TOP + ROW * len(scores)

    def place(value: float) -> float:
        return LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT)

    parts = []
    for number, (name, value) in enumerate(marks):
        parts.append(_line(place(value), TOP - 6, place(value), bottom, MUTED, dashed=True))
        parts.append(_text(place(value), bottom + 16 + 14 * number, f"{name} {value:.2f}", "middle"))
    for number, one in enumerate(scores):
        y = TOP + ROW * (number + 0.5)
        mean, *interval = one["score"]
        colour = INK if one["method"] in ("random", "full") else CHOSEN
        name = one["method"] if one["method"] == "full" else f"{one['method']}, {one['rows']:,} rows"
        parts.append(_text(LEFT - 12, y + 4, name, "end"))
        if None not in interval:
            parts.append(_line(place(interval[0]), y, place(interval[1]), y, colour))
        parts.append(f'<circle cx="{place(mean):.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
    _write(path, bottom + BOTTOM, f"{metric} by method, with 95 % intervals", parts)


def curve_chart(title: str, curves: Sequence[tuple[str, Sequence[float]]], path: Path) -> None:
    """Values by iteration, a line each; values from 0, iterations by logarithm."""
    height, steps = 300, max(len(values) for _, values in curves)
    low, high = 0.0, max(value for _, values in curves for value in values)

    def point(step: int, value: float) -> str:
        x = 60 + math.log(step) / (math.log(steps) or 1) * (WIDTH - 60 - RIGHT)
        return f"{x:.1f},{height - 40 - (value - low) / (high - low) * (height - 60):.1f}"

    parts = []
    for number, (name, values) in enumerate(curves):
        colour = LINES[number % len(LINES)]
        points = " ".join(point(step, value) for step, value in enumerate(values, 1))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = point(len(values), values[-1]).split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        parts.append(_text(WIDTH - RIGHT, 24 + 16 * number, f"{name}: {values[-1]:.3f}", "end", colour))
    parts += [_text(52, 24, f"{high:.2f}", "end"), _text(52, height - 36, "0", "end")]
    parts += [_text(60, height - 20, "1", "middle"), _text(WIDTH - RIGHT, height - 20, f"{steps:,}", "end")]
    parts.append(_text(WIDTH / 2, height - 6, "iteration, by logarithm", "middle"))
    _write(path, height, title, parts)


def budget_chart(title: str, comparisons: Sequence[Record], metric: str, path: Path) -> None:
    """A line a method over rising budgets, by logarithm, with 95 % intervals; dashed: the first model, and all rows."""
    blocks = [one["metrics"][metric] for one in comparisons]
    marks = [("first model", blocks[0]["untrained"])]
    curves: dict[str, list[tuple[int, Sequence[float | None]]]] = {}
    for one in sorted((one for block in blocks for one in block["methods"]), key=lambda one: one["rows"]):
        if one["method"] == "full":
            marks += [("all rows", one["score"][0])] if len(marks) == 1 else []
        else:
            curves.setdefault(one["method"], []).append((one["rows"], one["score"]))
    rows = sorted({count for points in curves.values() for count, _ in points})
    ends = [mean for points in curves.values() for _, (mean, *_) in points if mean is not None]
    low, high = min([*ends, *(value for _, value in marks)]), max([*ends, *(value for _, value in marks)])
    height, right = 320, 190

    def x(count: int) -> float:
        return 60 + math.log(count / rows[0]) / (math.log(rows[-1] / rows[0]) or 1) * (WIDTH - 60 - right)

    def y(value: float) -> float:  # an interval that leaves the chart is cut off at its edge
        return height - 50 - (min(max(value, low), high) - low) / ((high - low) or 1) * (height - 80)

    parts = [_text(x(count), height - 28, f"{count:,}", "middle") for count in rows]
    parts += [_text((WIDTH - right + 60) / 2, height - 8, "rows chosen, by logarithm", "middle")]
    for name, value in marks:
        parts.append(_line(60, y(value), WIDTH - right, y(value), MUTED, dashed=True))
        parts.append(_text(52, y(value) + 4, f"{value:.2f}", "end"))
        parts.append(_text(64, y(value) - 5, name, "start", MUTED))
    for number, (method, points) in enumerate(curves.items()):
        colour = INK if method == "random" else LINES[number % len(LINES)]
        places = [(x(count) + 3 * number, score) for count, score in points]
        line = " ".join(f"{place:.1f},{y(mean):.1f}" for place, (mean, *_) in places if mean is not None)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for place, (mean, least, most) in places:
            if least is not None and most is not None:
                parts.append(_line(place, y(least), place, y(most), colour))
            parts.append(f'<circle cx="{place:.1f}" cy="{y(mean or 0.0):.1f}" r="4" fill="{colour}"/>')
        last = points[-1][1][0]
        parts.append(_text(WIDTH - right + 20, 40 + 18 * number, f"{method}: {last:.2f}", "start", colour))
    _write(path, height, title, parts)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="2"{dashes}/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {FONT} fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def _write(path: Path, height: float, title: str, parts: Sequence[str]) -> None:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
    write_text(path, "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>"]) + "\n")
