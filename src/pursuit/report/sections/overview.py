"""The first screen, and the list of what the page holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pursuit.report.data import ReportData
from pursuit.report.summary import SourceShare, token_share
from pursuit.report.text import count, number, percent, shorten
from pursuit.report.weights import WeightSummary

OVERVIEW_SOURCES = 5

Context = dict[str, Any]


def overview(data: ReportData, shares: Sequence[SourceShare], weights: WeightSummary | None) -> Context:
    """Headline, tiles and the bars of the largest sources."""
    chosen = data.chosen.num_rows
    share = chosen / data.pool_size if data.pool_size else float("nan")
    rest = len(shares) - OVERVIEW_SOURCES
    return {
        "headline": {"chosen": count(chosen), "pool": count(data.pool_size), "share": percent(share)},
        "tiles": _tiles(data, shares, weights),
        "source_bars": _source_bars(shares[:OVERVIEW_SOURCES]) if len(shares) > 1 else [],
        "source_bars_more": f"and {count(rest)} smaller sources" if rest > 0 else "",
    }


def _tiles(data: ReportData, shares: Sequence[SourceShare], weights: WeightSummary | None) -> list[dict[str, str]]:
    chosen = data.chosen.num_rows
    share = chosen / data.pool_size if data.pool_size else float("nan")
    tiles = [_tile("Chosen", count(chosen), f"of {count(data.pool_size)} examples ({percent(share)})")]
    tokens = token_share(data)
    if tokens is not None:
        total = np.nansum(data.chosen["length"].cast("float64").to_numpy())
        tiles.append(_tile("Tokens", percent(tokens), f"of the pool's tokens ({count(int(total))})"))
    used = sum(item.chosen > 0 for item in shares)
    if len(shares) > 1:
        tiles.append(_tile("Sources", count(used), f"of {count(len(shares))} have chosen examples"))
    if data.clusters:
        reached = len(set(data.chosen["cluster"].to_pylist())) if "cluster" in data.chosen.column_names else 0
        tiles.append(_tile("Clusters", count(reached), f"of {count(len(data.clusters))} have chosen examples"))
    ours = next((curve for curve in data.residuals.values() if len(curve)), None)
    if ours is not None:
        tiles.append(_tile("Residual", number(float(f"{ours[-1]:.3g}")), "of the goal is left unexplained"))
    if weights is not None:
        tiles.append(_tile("Weights", count(round(weights.effective)), "equal rows would weigh as much"))
    if data.examples or data.near_duplicates:
        tiles.append(_tile("Near pairs", count(len(data.near_duplicates)), "near-duplicates among the chosen"))
    if data.agreement is not None and data.agreement.entries:
        least = min(data.agreement.entries, key=lambda entry: entry.kept)
        tiles.append(_tile("Agreement", percent(least.kept), "chosen again, at least"))
    if data.refused_total or data.refused:
        tiles.append(_tile("Refused", count(max(data.refused_total, len(data.refused))), "rows that cannot be used"))
    if data.duplicates_in_pool is not None:
        tiles.append(_tile("Pool repeats", count(data.duplicates_in_pool), "examples equal an earlier one"))
    return tiles


def _tile(name: str, value: str, detail: str) -> dict[str, str]:
    return {"name": name, "value": value, "detail": detail}


def _source_bars(shares: Sequence[SourceShare]) -> list[Context]:
    return pair_bars([(share.source or "(no source)", share.pool_share, share.chosen_share) for share in shares])


def pair_bars(rows: Sequence[tuple[str, float, float]]) -> list[Context]:
    """Pairs of bars, (name, share of the pool, share of the chosen), to the scale of the longest."""
    highest = max([max(pool, chosen) for _, pool, chosen in rows], default=1.0) or 1.0
    return [
        {
            "name": name, "short": shorten(name, 60), "pool": percent(pool), "pool_width": pool / highest,
            "chosen": percent(chosen), "chosen_width": chosen / highest,
        }
        for name, pool, chosen in rows
    ]  # fmt: skip


def contents(context: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The sections that are there, as (id, name), and those that are not, as (name, why)."""
    figures = context["figures"]
    clusters = context["cluster_rows"]
    every = (
        ("overview", "Overview", True, ""),
        ("map", "Map", "map" in figures or context["directions"], "not computed"),
        ("sources", "Sources", context["source_rows"], "there is only one"),
        ("targets", "Targets", context["target_rows"], ""),
        ("clusters", "Clusters", clusters, "the method makes none"),
        ("residuals", "Residual", "curves" in figures, "" if clusters else "the method has none"),
        ("weights", "Weights", context["weight_tables"] or "weights" in figures, "they are all equal"),
        ("browse", "Examples", context["has_browser"] or context["chosen_rows"], "no texts and no ranks were given"),
        ("near", "Near-duplicates", context["near_shown"], "no texts to compare"),
        ("quantities", "Bias", context["quantity_rows"] or context["script_bars"],
         "lengths, losses and norms are unknown"),
        ("agreement", "Agreement", context["agreement_bars"] or context["agreement_left_out"], "not asked for"),
        ("refused", "Refused", context["refused_total"], ""),
        ("time", "Time and cost", True, ""),
        ("settings", "Settings", context["setting_rows"] or context["version_rows"], "none were recorded"),
    )  # fmt: skip
    there = [(identity, name) for identity, name, present, _ in every if present]
    missing = [(name.lower(), why) for _, name, present, why in every if not present and why]
    if context["quantity_rows"] and not any(row[0].startswith("Loss") for row in context["quantity_rows"]):
        missing.append(("losses", "unknown"))
    return there, missing
