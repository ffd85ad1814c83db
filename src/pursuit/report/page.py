"""The report as one HTML file that loads nothing: style, scripts, charts and data are all inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pursuit.report import plots
from pursuit.report.data import GradientMap, ReportData
from pursuit.report.examples import example_records
from pursuit.report.observations import observations
from pursuit.report.rendering import render, write_page
from pursuit.report.sections import cost, groups, overview, pursuit, rows
from pursuit.report.summary import ClusterRow, Distribution, SourceShare, cluster_rows, distributions, source_shares
from pursuit.report.text import flatten, script_json
from pursuit.report.weights import WeightSummary, weight_summary


def write_report(data: ReportData, path: Path) -> None:
    """Write the report to `path`, atomically; the same data give the same bytes.

    Args:
        data: what to show; a part that is missing leaves its section out, and the overview says why.
        path: the HTML file to write.
    """
    write_page(page(data), path)


def page(data: ReportData) -> str:
    """The report as HTML."""
    shares, found, clusters = source_shares(data), distributions(data), cluster_rows(data)
    weights = weight_summary(data)
    figures = _figures(data, shares, found, clusters, weights)
    context: dict[str, Any] = {
        "title": data.title, "method": data.method, "model": data.model, "features": data.features,
        "warnings": list(data.warnings),
        "observations": observations(data, shares, found), "figures": figures,
        "setting_rows": flatten(data.settings), "version_rows": sorted(data.versions.items()),
        "examples_json": Markup(script_json(example_records(data.examples))),
    }  # fmt: skip
    context |= overview.overview(data, shares, weights)
    context |= groups.by_source(shares) | groups.by_target(data) | groups.by_cluster(data, clusters)
    context |= groups.by_weight(data, weights) | groups.by_script(data)
    context |= pursuit.by_curve(data) | pursuit.by_agreement(data)
    context |= rows.quantities(found) | rows.chosen_rows(data) | rows.near_duplicates(data) | rows.refused(data)
    context |= rows.gradient_space(data, figures)
    context |= cost.time_and_cost(data)
    context["sections"], context["absent"] = overview.contents(context)
    return render("report.html.j2", context, figures, ["browse.js"] if data.examples else [])


def _figures(
    data: ReportData, shares: Sequence[SourceShare], found: Sequence[Distribution], clusters: Sequence[ClusterRow],
    weights: WeightSummary | None,
) -> dict[str, plots.Figure]:  # fmt: skip
    figures: dict[str, plots.Figure | None] = {}
    if len(shares) > 1:
        figures["sources"] = plots.sources(shares)
    if clusters:
        figures["clusters"] = plots.clusters(clusters, data.pool_size, data.chosen.num_rows)
        figures["cluster_residuals"] = plots.cluster_residuals(clusters)
    if any(len(curve) for curve in data.residuals.values()):
        figures["curves"] = plots.curves(data.residuals, data.step)
        if any(len(entered) for entered in data.support_changes.values()):
            figures["support"] = plots.support_changes(data.support_changes)
    if weights is not None:
        figures["weights"] = plots.concentration(weights)
    for item in found:
        if len(item.edges):
            figures[item.column] = plots.distribution(item)
    if data.map is not None and len(data.map[0]):
        figures["map"] = plots.gradient_map(GradientMap(*data.map))
    return {name: figure for name, figure in figures.items() if figure is not None}
