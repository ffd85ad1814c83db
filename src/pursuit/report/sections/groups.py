"""Sections about groups of rows: sources, targets, clusters, weights, scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pursuit.report.data import ReportData
from pursuit.report.plots.base import thin
from pursuit.report.plots.residuals import MOST_CURVES
from pursuit.report.sections.overview import pair_bars
from pursuit.report.summary import ClusterRow, SourceShare, clusters_known
from pursuit.report.text import UNKNOWN, count, number, percent, shorten, times
from pursuit.report.weights import WeightSummary

MOST_ROWS = 500  # rows of one table

Context = dict[str, Any]


def by_source(shares: Sequence[SourceShare]) -> Context:
    """The table of sources; with a single source there is nothing to compare."""
    rows = [
        [
            share.source or "(no source)", count(share.pool), percent(share.pool_share), count(share.chosen),
            percent(share.chosen_share), times(share.factor) if share.pool else "not in the pool",
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


def by_target(data: ReportData) -> Context:
    """The table of targets, where there are several."""
    rows = [
        [
            view.name or "(no name)", UNKNOWN if view.examples is None else count(view.examples),
            UNKNOWN if view.quota is None else count(view.quota), count(view.chosen),
            percent(view.chosen / max(1, data.chosen.num_rows)), number(view.residual),
        ]
        for view in data.targets[:MOST_ROWS]
    ]  # fmt: skip
    columns = [("target", False), ("its examples", True), ("quota", True), ("chosen", True), ("share of chosen", True)]
    with_residual = any(view.residual is not None for view in data.targets)
    return {
        "target_columns": columns + ([("residual", True)] if with_residual else []),
        "target_rows": [row if with_residual else row[:-1] for row in rows],
    }


def by_cluster(data: ReportData, rows: Sequence[ClusterRow]) -> Context:
    """The table of clusters, each with a small picture of its residual."""
    pool, chosen = max(1, data.pool_size), max(1, data.chosen.num_rows)
    return {
        "cluster_rows": [
            {
                "cluster": str(row.view.cluster), "size": count(row.view.size), "chosen": count(row.chosen),
                "share": percent(row.chosen / row.view.size if row.view.size else None),
                "pool_share": percent(row.view.size / pool), "chosen_share": percent(row.chosen / chosen),
                "source": f"{shorten(row.top_source, 60)} ({percent(row.top_share)})" if row.top_source else UNKNOWN,
                "residual": number(row.view.residuals[-1]) if len(row.view.residuals) else UNKNOWN,
                "path": sparkline(row.view.residuals),
            }
            for row in rows[:MOST_ROWS]
        ],
        "cluster_source": "mostly from" if clusters_known(data) else "chosen mostly from",
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


def by_weight(data: ReportData, weights: WeightSummary | None) -> Context:
    """How the weights are spread, and the weight of every group."""
    if weights is None:
        return {"weight_tables": [], "weight_note": ""}
    note = (
        f"The {count(data.chosen.num_rows)} weights count like {count(round(weights.effective))} equal ones; the "
        f"heaviest tenth of the rows carries {percent(weights.top_tenth)} of the weight."
    )
    if weights.zero:
        note += f" {count(weights.zero)} rows have weight 0."
    tables = [
        {
            "title": f"Weight by {name}",
            "columns": [(name, False), ("chosen", True), ("share of chosen", True), ("share of weight", True),
                        ("weight share ÷ row share", True)],
            "rows": [
                [group.group or f"(no {name})", count(group.rows), percent(group.row_share),
                 percent(group.weight_share), times(group.weight_share / group.row_share)] for group in groups
            ],
        }
        for name, groups in weights.groups.items()
    ]  # fmt: skip
    return {"weight_tables": tables, "weight_note": note}


def by_script(data: ReportData) -> Context:
    """Scripts of the responses, in the pool and among the chosen."""
    pool, chosen = max(1, sum(row[1] for row in data.scripts)), max(1, sum(row[2] for row in data.scripts))
    bars = pair_bars([(name, in_pool / pool, picked / chosen) for name, in_pool, picked in data.scripts])
    return {"script_bars": bars, "scripts_note": data.scripts_note}
