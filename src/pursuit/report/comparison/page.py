"""The comparison as one HTML file that loads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pursuit.report.comparison import plots, tables
from pursuit.report.comparison.data import CompareData, MetricScores
from pursuit.report.comparison.findings import budgets_of, findings, methods_of
from pursuit.report.plots.base import Figure
from pursuit.report.rendering import render, write_page
from pursuit.report.text import count, flatten, money, percent


def write_comparison(data: CompareData, path: Path) -> None:
    """Write the comparison to `path`, atomically; the same data give the same bytes."""
    write_page(comparison_page(data), path)


def comparison_page(data: CompareData) -> str:
    """The comparison as HTML."""
    methods = methods_of(data)
    figures: dict[str, Figure] = {}
    metrics = [_metric(data, metric, number, methods, figures) for number, metric in enumerate(data.metrics)]
    cost = plots.cost(data.metrics[0], methods) if data.metrics else None
    if cost is not None:
        figures["cost"] = cost
    runs = tables.run_table(data)
    price = data.price_per_hour
    context: dict[str, Any] = {
        "title": data.title, "model": data.model, "select_model": data.select_model, "evaluation": data.evaluation,
        "pool": "" if data.pool_size is None else count(data.pool_size), "tiles": tables.tiles(data, methods),
        "findings": findings(data), "warnings": list(data.warnings), "metrics": metrics, "runs": runs,
        "failed": [list(entry) for entry in data.failed],
        "price_note": "" if price is None else f"Money: {money(3600, price, data.currency)} an hour.",
        "setting_rows": flatten(data.settings), "version_rows": sorted(data.versions.items()),
    }  # fmt: skip
    context["sections"] = _contents(context, cost is not None)
    return render("comparison.html.j2", context, figures, ["sort.js"])


def _metric(
    data: CompareData, metric: MetricScores, number: int, methods: list[str], figures: dict[str, Figure]
) -> dict[str, Any]:
    budgets = budgets_of(metric)
    bars = []
    for place, budget in enumerate(budgets):
        name = f"bars-{number}-{place}"
        figures[name] = plots.bars(metric, budget, methods)
        bars.append({"figure": name, "budget": percent(budget)})
    curve = f"curves-{number}" if len(budgets) > 1 else ""
    if curve:
        figures[curve] = plots.curves(metric, methods)
    return {
        "id": f"metric-{number}", "name": metric.name, "unit": metric.unit, "bars": bars, "curve": curve,
        "way": "higher is better" if metric.higher_is_better else "lower is better",
        "from_untrained": metric.untrained is not None, "table": tables.score_table(data, metric),
        "families": [found for budget in budgets if (found := tables.family_table(metric, budget)) is not None],
    }  # fmt: skip


def _contents(context: dict[str, Any], with_cost: bool) -> list[tuple[str, str]]:
    names = [metric["name"][:1].upper() + metric["name"][1:] for metric in context["metrics"]]
    every = [
        ("overview", "Overview", True),
        *((metric["id"], name, True) for metric, name in zip(context["metrics"], names, strict=True)),
        ("cost", "Cost", with_cost),
        ("runs", "Runs", bool(context["runs"]["rows"] or context["failed"])),
        ("settings", "Settings", bool(context["setting_rows"] or context["version_rows"])),
    ]
    return [(identity, name) for identity, name, present in every if present]
