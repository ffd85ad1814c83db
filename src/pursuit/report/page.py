"""The report as one HTML file that loads nothing: style, scripts, charts and data are all inside."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections import Counter
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pursuit.files import atomic_path
from pursuit.report import plots, sections
from pursuit.report.data import GradientMap, ReportData
from pursuit.report.examples import compared, example_records
from pursuit.report.summary import cluster_rows, distributions, observations, source_shares
from pursuit.report.text import count, flatten, script_json, visible

MOST_PAIRS = 40  # near-duplicates shown


def write_report(data: ReportData, path: Path) -> None:
    """Write the report to `path`, atomically; the same data give the same bytes.

    Args:
        data: what to show; a part that is missing leaves its section out, and the overview says why.
        path: the HTML file to write.
    """
    html = page(data)
    with atomic_path(Path(path)) as partial:
        partial.write_text(html, encoding="utf-8", newline="\n")


def page(data: ReportData) -> str:
    """The report as HTML."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize
    )
    return environment.from_string(_resource("page.html.j2")).render(**_context(data)) + "\n"


def _finalize(value: Any) -> Any:
    return visible(value) if type(value) is str else value


def _resource(name: str) -> str:
    return (files("pursuit.report") / name).read_text(encoding="utf-8")


@cache
def _plotly() -> tuple[str, str]:
    """plotly.js: (gzip in base64, a quarter of its size), and the hash under which the page may run it."""
    from plotly.offline import get_plotlyjs  # takes a moment: only when there is a chart to draw

    script = get_plotlyjs().encode()
    return base64.b64encode(gzip.compress(script, 9, mtime=0)).decode(), _script_hash(script)


def _script_hash(script: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"


def _context(data: ReportData) -> dict[str, Any]:
    shares = source_shares(data)
    found = distributions(data)
    clusters = cluster_rows(data)
    figures = _figures(data, shares, found, clusters)
    context: dict[str, Any] = {
        "title": data.title, "method": data.method, "model": data.model, "warnings": list(data.warnings),
        "observations": observations(data, shares, found), "figures": figures,
    }  # fmt: skip
    context |= sections.overview(data, shares)
    context |= sections.by_source(shares)
    context |= sections.by_cluster(clusters)
    context |= sections.by_curve(data)
    context |= sections.quantities(found)
    context |= sections.chosen_rows(data)
    context |= sections.time_and_cost(data)
    context |= _near(data) | _refused(data) | _map(figures)
    context |= {
        "has_browser": bool(data.examples),
        "browse_note": _browse_note(data),
        "setting_rows": flatten(data.settings),
        "version_rows": sorted(data.versions.items()),
    }
    context["sections"], context["absent"] = sections.contents(context)
    return context | _scripts(data, figures)


def _figures(data: ReportData, shares: Any, found: Any, clusters: Any) -> dict[str, plots.Figure]:
    figures: dict[str, plots.Figure | None] = {}
    if len(shares) > 1:
        figures["sources"] = plots.sources(shares)
    if clusters:
        figures["clusters"] = plots.clusters(clusters, data.pool_size, data.chosen.num_rows)
        figures["cluster_residuals"] = plots.cluster_residuals(clusters)
    if any(len(curve) for curve in data.residuals.values()):
        figures["curves"] = plots.curves(data.residuals)
    for item in found:
        if len(item.edges):
            figures[item.column] = plots.distribution(item)
    if data.map is not None and len(data.map[0]):
        figures["map"] = plots.gradient_map(GradientMap(*data.map))
    return {name: figure for name, figure in figures.items() if figure is not None}


def _scripts(data: ReportData, figures: dict[str, plots.Figure]) -> dict[str, Any]:
    """Everything that goes into the page unescaped, each part safe by itself, and the policy that names the scripts."""
    charts, browse = _resource("charts.js"), _resource("browse.js")
    packed, library = _plotly() if figures else ("", "")
    allowed = [_script_hash(charts.encode()), library] if figures else []
    allowed += [_script_hash(browse.encode())] if data.examples else []
    none = "'none'"
    return {
        "style": Markup(_resource("style.css")),
        "charts_script": Markup(charts),
        "browse_script": Markup(browse),
        "plotly_packed": Markup(packed),
        "figures_json": Markup(script_json(figures)),
        "examples_json": Markup(script_json(example_records(data.examples))),
        # The browser itself refuses every connection, and every script but these.
        "policy": Markup(
            f"default-src 'none'; script-src {' '.join(allowed) or none}; "
            "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
        ),
    }


def _near(data: ReportData) -> dict[str, Any]:
    pairs = sorted(data.near_duplicates, key=lambda pair: (-pair.similarity, pair.a_rank, pair.b_rank))
    rows = [
        {
            "a": count(pair.a_rank), "b": count(pair.b_rank), "similarity": f"{pair.similarity:.3f}",
            "sides": compared(pair),
        }
        for pair in pairs[:MOST_PAIRS]
    ]  # fmt: skip
    return {
        "near_rows": rows,
        "near_total": len(pairs),
        "near_count": "One pair was found" if len(pairs) == 1 else f"{count(len(pairs))} pairs were found",
        "near_none": "None were found." if not pairs and data.examples and data.chosen.num_rows > 1 else "",
    }


def _refused(data: ReportData) -> dict[str, Any]:
    total, listed = max(data.refused_total, len(data.refused)), len(data.refused)
    reasons = Counter(reason for _, _, reason in data.refused)
    note = f"{count(total)} row{'s' * (total != 1)} could not be used and took no part in the selection."
    if listed < total:
        note += f" The first {count(listed)} are listed here." if listed else " They are listed in the run folder."
    return {
        "refused_total": total,
        "refused_note": note,
        "refused_reasons": [[reason, count(number)] for reason, number in reasons.most_common(30)],
        "refused_rows": [[path, str(line), reason] for path, line, reason in data.refused[: sections.MOST_ROWS]],
    }


def _map(figures: dict[str, plots.Figure]) -> dict[str, Any]:
    if "map" not in figures:
        return {"map_count": "", "map_described": ""}
    pool, chosen = (len(trace["x"]) for trace in figures["map"]["data"])
    total = pool + chosen
    return {
        "map_count": count(total),
        "map_described": f"Points: {count(total)} examples of the pool, {count(chosen)} of them chosen. "
        "There is no table for it; the clusters group the same examples in numbers.",
    }


def _browse_note(data: ReportData) -> str:
    shown, total = len(data.examples), data.chosen.num_rows
    if shown < total:
        return f"{count(shown)} of the {count(total)} chosen examples are in this page."
    return f"All {count(total)} chosen examples." if total > 1 else "The one chosen example."
