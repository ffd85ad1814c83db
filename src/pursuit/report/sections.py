"""What each section of the page says, as plain strings and rows for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pursuit.report.data import ReportData
from pursuit.report.plots import MOST_CURVES, factor_text, thin
from pursuit.report.summary import ClusterRow, Distribution, SourceShare, known_cost, saving, token_share
from pursuit.report.text import UNKNOWN, about, count, duration, number, percent, shorten

MOST_ROWS = 500  # rows of one table
OVERVIEW_SOURCES = 5

Context = dict[str, Any]


def overview(data: ReportData, shares: Sequence[SourceShare]) -> Context:
    """Headline, tiles and the two panels of the first screen."""
    chosen = data.chosen.num_rows
    share = chosen / data.pool_size if data.pool_size else float("nan")
    tiles = [_tile("Chosen", count(chosen), f"of {count(data.pool_size)} examples ({percent(share)})")]
    tokens = token_share(data)
    if tokens is not None:
        total = np.nansum(data.chosen["length"].cast("float64").to_numpy())
        tiles.append(_tile("Tokens", percent(tokens), f"of the pool's tokens ({count(int(total))})"))
    used = sum(item.chosen > 0 for item in shares)
    if len(shares) > 1:
        tiles.append(_tile("Sources", f"{count(used)} of {count(len(shares))}", "have chosen examples"))
    if data.clusters:
        reached = len(set(data.chosen["cluster"].to_pylist())) if "cluster" in data.chosen.column_names else 0
        tiles.append(_tile("Clusters", f"{count(reached)} of {count(len(data.clusters))}", "have chosen examples"))
    if data.examples or data.near_duplicates:
        tiles.append(_tile("Near-duplicates", count(len(data.near_duplicates)), "pairs among the chosen"))
    if data.duplicates_in_pool is not None:
        tiles.append(_tile("Pool repeats", count(data.duplicates_in_pool), "examples equal an earlier one"))
    if data.refused_total or data.refused:
        tiles.append(_tile("Refused", count(max(data.refused_total, len(data.refused))), "rows that cannot be used"))
    return {
        "headline": {"chosen": count(chosen), "pool": count(data.pool_size), "share": percent(share)},
        "tiles": tiles,
        "source_bars": _source_bars(shares[:OVERVIEW_SOURCES]) if len(shares) > 1 else [],
        "source_bars_more": f"and {count(len(shares) - OVERVIEW_SOURCES)} smaller sources"
        if len(shares) > OVERVIEW_SOURCES
        else "",
    }


def _tile(name: str, value: str, detail: str) -> dict[str, str]:
    return {"name": name, "value": value, "detail": detail}


def _source_bars(shares: Sequence[SourceShare]) -> list[Context]:
    highest = max([max(share.pool_share, share.chosen_share) for share in shares], default=1.0) or 1.0
    return [
        {
            "name": share.source or "(no source)", "short": shorten(share.source or "(no source)", 60),
            "pool": percent(share.pool_share), "pool_width": share.pool_share / highest,
            "chosen": percent(share.chosen_share), "chosen_width": share.chosen_share / highest,
        }
        for share in shares
    ]  # fmt: skip


def by_source(shares: Sequence[SourceShare]) -> Context:
    """The table of sources; with a single source there is nothing to compare."""
    rows = [
        [
            share.source or "(no source)", count(share.pool), percent(share.pool_share), count(share.chosen),
            percent(share.chosen_share), factor_text(share),
        ]
        for share in shares[:MOST_ROWS]
    ]  # fmt: skip
    more = f"and {count(len(shares) - MOST_ROWS)} smaller sources" if len(shares) > MOST_ROWS else ""
    return {
        "source_columns": [
            ("source", False), ("in the pool", True), ("share of pool", True), ("chosen", True),
            ("share of chosen", True), ("chosen share ÷ pool share", True),
        ],
        "source_rows": rows if len(shares) > 1 else [],
        "source_more": more,
    }  # fmt: skip


def by_cluster(rows: Sequence[ClusterRow]) -> Context:
    """The table of clusters, each with a small picture of its residual."""
    return {
        "cluster_rows": [
            {
                "cluster": str(row.view.cluster), "size": count(row.view.size), "chosen": count(row.chosen),
                "share": percent(row.chosen / row.view.size if row.view.size else None),
                "source": f"{shorten(row.top_source, 60)} ({percent(row.top_share)})" if row.top_source else UNKNOWN,
                "residual": number(row.view.residuals[-1]) if len(row.view.residuals) else UNKNOWN,
                "path": sparkline(row.view.residuals),
            }
            for row in rows[:MOST_ROWS]
        ],
        "curves_drawn": MOST_CURVES if sum(len(row.view.residuals) > 0 for row in rows) > MOST_CURVES else 0,
    }  # fmt: skip


def sparkline(curve: Sequence[float]) -> str:
    """SVG path of a curve in a box of 100 × 24, with 0 at its foot and the larger of 1 and the maximum at its top."""
    if len(curve) < 2:
        return ""
    steps, values = thin(curve, 60)
    top = max(1.0, *values)
    span = steps[-1] - 1
    corners = zip(steps, values, strict=True)
    return "M" + " L".join(f"{100 * (step - 1) / span:.4g},{23 - 22 * value / top:.4g}" for step, value in corners)


def by_curve(data: ReportData) -> Context:
    """Residuals at a few steps, for those who read the table and not the chart."""
    named = {name: curve for name, curve in data.residuals.items() if len(curve)}
    longest = max([len(curve) for curve in named.values()], default=0)
    steps = sorted({max(1, round(longest * part / 10)) for part in range(1, 11)} | {1}) if longest else []
    rows = [
        [count(step), *(number(curve[step - 1]) if step <= len(curve) else UNKNOWN for curve in named.values())]
        for step in steps
    ]
    return {"curve_columns": [("step", True), *((name, True) for name in named)], "curve_rows": rows}


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
    """The chosen rows as a table, for selections without texts to browse."""
    wanted = ("rank", "index", "weight", "score", "cluster", "source")
    names = [name for name in wanted if name in data.chosen.column_names]
    table = data.chosen.select(names).slice(0, MOST_ROWS).to_pylist()
    return {
        "chosen_columns": [(name, name != "source") for name in names],
        "chosen_rows": [[_cell(row[name]) for name in names] for row in table] if len(names) > 1 else [],
        "chosen_note": "There are no texts to show: only features were given."
        + (f" The first {MOST_ROWS} chosen rows follow." if data.chosen.num_rows > MOST_ROWS else ""),
    }


def _cell(value: Any) -> str:
    return UNKNOWN if value is None else value if isinstance(value, str) else number(value)


def time_and_cost(data: ReportData) -> Context:
    """Stage timings and what training costs with and without the selection."""
    longest = max([seconds for _, seconds, _ in data.timings], default=0.0) or 1.0
    labels = (
        ("Selection", "ink", "selection_seconds"),
        ("Train on chosen", "chosen", "subset_training_seconds"),
        ("Train on pool", "pool", "full_training_seconds"),
    )
    known = known_cost(data)
    costs = [(name, kind, known[key]) for name, kind, key in labels if key in known]
    highest = max([seconds for _, _, seconds in costs], default=0.0) or 1.0
    ratio = saving(data)
    sentence = ""
    if ratio is not None:
        word = f"{about(ratio)} times less than" if ratio >= 1.05 else "no saving against"
        sentence = f"Selecting and training on the chosen together take {word} training on the whole pool."
    total = sum(seconds for _, seconds, _ in data.timings)
    return {
        "timing_rows": [
            {"stage": stage, "time": duration(seconds), "width": seconds / longest, "note": note}
            for stage, seconds, note in data.timings
        ],
        "timing_total": f"Together {duration(total)}.",
        "cost_bars": [
            {"name": name, "kind": kind, "value": duration(seconds), "width": seconds / highest}
            for name, kind, seconds in costs
        ],
        "cost_rows": [[name, duration(seconds)] for name, _, seconds in costs],
        "saving": sentence,
    }


def contents(context: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The sections that are there, as (id, name), and those that are not, as (name, why)."""
    figures = context["figures"]
    every = (
        ("overview", "Overview", True, ""),
        ("sources", "Sources", context["source_rows"], "there is only one"),
        ("clusters", "Clusters", context["cluster_rows"], "the method makes none"),
        ("residuals", "Residual", "curves" in figures, "" if context["cluster_rows"] else "the method has none"),
        ("quantities", "Distributions", context["quantity_rows"], "lengths, losses and norms are unknown"),
        ("map", "Map", "map" in figures, "not computed"),
        ("near", "Near-duplicates", context["near_rows"] or context["near_none"], "no texts to compare"),
        ("browse", "Examples", context["has_browser"] or context["chosen_rows"], "no texts and no ranks were given"),
        ("refused", "Refused", context["refused_total"], ""),
        ("time", "Time and cost", True, ""),
        ("settings", "Settings", context["setting_rows"] or context["version_rows"], "none were recorded"),
    )
    there = [(identity, name) for identity, name, present, _ in every if present]
    missing = [(name.lower(), why) for _, name, present, why in every if not present and why]
    if context["quantity_rows"] and not any(row[0].startswith("Loss") for row in context["quantity_rows"]):
        missing.append(("losses", "unknown"))
    return there, missing
