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


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="2"{dashes}/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {FONT} fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def _write(path: Path, height: float, title: str, parts: Sequence[str]) -> None:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
    write_text(path, "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>"]) + "\n")
