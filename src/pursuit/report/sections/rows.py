"""Sections about single rows: distributions, the map, near-duplicates, chosen and refused rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pursuit.report.data import NearDuplicate, ReportData
from pursuit.report.examples import compared
from pursuit.report.plots.base import Figure
from pursuit.report.sections.groups import MOST_ROWS
from pursuit.report.summary import Distribution
from pursuit.report.text import UNKNOWN, count, number, percent, shorten

MOST_PAIRS = 40  # near-duplicates shown

Context = dict[str, Any]


def quantities(found: Sequence[Distribution]) -> Context:
    """Lengths, losses and gradient norms: one picture each and one table of all."""
    names = [item.column for item in found]
    parts = [("Lengths", "length" in names or "response_length" in names), ("losses", "loss" in names)]
    titles = [title for title, there in [*parts, ("gradient norms", "gradient_norm" in names)] if there]
    heading = " and ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles)
    shown, rows = [], []
    for item in found:
        medians = f"Median {number(item.pool.median)} in the pool, {number(item.chosen.median)} among the chosen."
        alone = f"Every example has the same value, {number(item.pool.median)}."
        shown.append(
            {
                "title": item.title, "plot": item.column if len(item.edges) else "",
                "described": f"Density of the pool and of the chosen. {medians}" if len(item.edges) else alone,
            }
        )  # fmt: skip
        for name, values in (("pool", item.pool), ("chosen", item.chosen)):
            numbers = (values.mean, values.p5, values.median, values.p95)
            rows.append([f"{item.title}, {name}", *map(number, numbers), count(values.unknown)])
    columns = [("", False), *((name, True) for name in ("mean", "5% below", "median", "95% below", "unknown"))]
    return {
        "quantity_title": heading[:1].upper() + heading[1:], "quantity_plots": shown, "quantity_rows": rows,
        "quantity_columns": columns,
    }  # fmt: skip


def chosen_rows(data: ReportData) -> Context:
    """The chosen rows to browse, or as a table where there are no texts."""
    wanted = ("rank", "index", "weight", "score", "cluster", "source")
    names = [name for name in wanted if name in data.chosen.column_names]
    table = data.chosen.select(names).slice(0, MOST_ROWS).to_pylist()
    shown, chosen = len(data.examples), data.chosen.num_rows
    note = f"All {count(shown)} chosen examples." if shown == chosen else f"{count(shown)} of {count(chosen)} chosen."
    return {
        "has_browser": bool(data.examples), "browse_note": note,
        "has_neighbours": any(example.neighbour is not None for example in data.examples),
        "neighbours_note": data.neighbours_note,
        "chosen_columns": [(name, name != "source") for name in names],
        "chosen_rows": [[_cell(row[name]) for name in names] for row in table] if len(names) > 1 else [],
        "chosen_note": "There are no texts to show: only features were given."
        + (f" The first {MOST_ROWS} chosen rows follow." if data.chosen.num_rows > MOST_ROWS else ""),
    }  # fmt: skip


def _cell(value: Any) -> str:
    return UNKNOWN if value is None else value if isinstance(value, str) else number(value)


def near_duplicates(data: ReportData) -> Context:
    """Pairs among the chosen, and pairs that another method takes."""
    pairs = sorted(data.near_duplicates, key=lambda pair: (-pair.similarity, pair.a_rank, pair.b_rank))
    methods = [
        {
            "method": item.method, "rows": [_pair(pair) for pair in item.pairs[:MOST_PAIRS]],
            "note": f"{count(item.total)} pair{'s' * (item.total != 1)}"
            + (f", {count(len(item.pairs))} of them shown" if 0 < len(item.pairs) < item.total else ""),
        }
        for item in data.method_pairs
    ]  # fmt: skip
    none = "None were found." if not pairs and data.examples and data.chosen.num_rows > 1 else ""
    return {
        "near_rows": [_pair(pair) for pair in pairs[:MOST_PAIRS]], "near_total": len(pairs),
        "near_count": "One pair was found" if len(pairs) == 1 else f"{count(len(pairs))} pairs were found",
        "near_none": none, "near_note": data.near_duplicates_note, "near_methods": methods,
        "near_shown": bool(pairs or none or methods),
    }  # fmt: skip


def _pair(pair: NearDuplicate) -> Context:
    a, b = _named(pair.a_rank, pair.a_index), _named(pair.b_rank, pair.b_index)
    return {"a": a, "b": b, "similarity": f"{pair.similarity:.3f}", "sides": compared(pair)}


def _named(rank: int, index: int) -> str:
    return f"row {count(index)}" if rank < 1 and index >= 0 else f"rank {count(rank)}"


def refused(data: ReportData) -> Context:
    """Rows that could not be used, by reason and one by one."""
    total, listed = max(data.refused_total, len(data.refused)), len(data.refused)
    reasons = Counter(reason for _, _, reason in data.refused)
    note = f"{count(total)} row{'s' * (total != 1)} could not be used and took no part in the selection."
    if listed < total:
        note += f" The first {count(listed)} are listed here." if listed else " They are listed in the run folder."
    return {
        "refused_total": total,
        "refused_note": note,
        "refused_reasons": [[reason, count(number)] for reason, number in reasons.most_common(30)],
        "refused_rows": [[path, str(line), reason] for path, line, reason in data.refused[:MOST_ROWS]],
    }


def gradient_space(data: ReportData, figures: dict[str, Figure]) -> Context:
    """What the map shows, in words, and the ends of the main directions."""
    parts = figures["map"]["data"] if "map" in figures else []
    drawn, chosen = sum(len(part["x"]) for part in parts), len(parts[1]["x"]) if parts else 0
    return {
        "map_count": count(drawn),
        "map_described": f"Map of {count(drawn)} examples by their {data.features}, {count(chosen)} of them chosen.",
        "map_opens": bool(data.examples) and any(part["customdata"] for part in parts),
        "directions": [
            {
                "name": view.name, "variance": percent(view.variance), "pool": percent(view.pool),
                "chosen": percent(view.chosen), "texts": [shorten(" ".join(text.split()), 160) for text in view.texts],
            }
            for view in data.directions
        ],
    }  # fmt: skip
