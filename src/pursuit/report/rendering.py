"""What both pages are made of: templates, style, scripts, and the policy that lets the browser run nothing else."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from pursuit.files import atomic_path
from pursuit.report.text import script_json, visible


def render(template: str, context: Mapping[str, Any], figures: Mapping[str, Any], scripts: Sequence[str]) -> str:
    """A page as HTML.

    Args:
        template: file in `templates/`.
        context: its variables; every string of it is escaped.
        figures: plotly figures by name; the library comes along only where there are some.
        scripts: files in `assets/` that the page runs, besides those for charts.
    """
    environment = Environment(
        loader=FunctionLoader(lambda name: _resource(f"templates/{name}")), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalize,
    )  # fmt: skip
    whole = {**context, "figures": figures, **_unescaped(figures, scripts)}
    return environment.get_template(template).render(**whole) + "\n"


def write_page(html: str, path: Path) -> None:
    """Write a page, atomically."""
    with atomic_path(Path(path)) as partial:
        partial.write_text(html, encoding="utf-8", newline="\n")


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


def _unescaped(figures: Mapping[str, Any], scripts: Sequence[str]) -> dict[str, Any]:
    """Everything that goes into the page unescaped, each part safe by itself, and the policy that names the scripts."""
    none = "'none'"
    sources = [_resource(f"assets/{name}") for name in [*scripts, *["charts.js"] * bool(figures)]]
    packed, library = _plotly() if figures else ("", "")
    allowed = [_script_hash(source.encode()) for source in sources] + [library] * bool(figures)
    return {
        "style": Markup(_resource("assets/style.css")),
        "scripts": [Markup(source) for source in sources],
        "plotly_packed": Markup(packed),
        "figures_json": Markup(script_json(figures)),
        # The browser itself refuses every connection, and every script but these.
        "policy": Markup(
            f"default-src 'none'; script-src {' '.join(allowed) or none}; "
            "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
        ),
    }
