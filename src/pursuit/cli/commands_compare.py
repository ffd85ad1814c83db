"""What `pursuit compare` does, once its flags are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pursuit.compare import Comparison, compare
from pursuit.errors import RunError
from pursuit.run.run import Run


def run_compare(
    folder: Path, comparison: Comparison, out: Path, settings: Mapping[str, Any],
    price_per_hour: float | None = None, currency: str = "",
) -> None:  # fmt: skip
    """Compare, print the table, and say where everything lies."""
    if not (folder / "settings.json").exists() and not settings.get("pool"):
        raise RunError(f"{folder}: no run is in this folder. `pursuit select --run {folder} …` begins one.")
    with Run(folder, **settings) as run:
        found = compare(run, comparison, out, engine=run.engine, price_per_hour=price_per_hour, currency=currency)
    output = Console()
    output.print(found.summary)
    for label, path in (("runs", found.table), ("report", found.report)):
        output.print(Text.assemble((f"{label:8}", "bold"), str(path)), soft_wrap=True)
