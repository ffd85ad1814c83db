"""What a selection leaves behind: the subset, a table of why each row was chosen, and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import RenderableType

from pursuit.errors import DataError, SettingsError
from pursuit.files import atomic_path, refuse_overwriting, sha256_file, write_text
from pursuit.overview import Render, report_data
from pursuit.pool import Pool, write_subset
from pursuit.pool.write import SUBSET_ENDINGS
from pursuit.report import terminal_summary, write_report
from pursuit.selectors import Selection
from pursuit.store.features import Features

CHOSEN, REPORT = "chosen.parquet", "report.html"
SUBSET_DIGEST = b"subset_sha256"  # in the table's metadata


@dataclass(frozen=True)
class Result:
    """A selection and where it was written.

    Attributes:
        selection: indices, weights, order, diagnostics.
        subset: the chosen rows, in order of choice.
        table: Parquet, one row a chosen row: index, rank, weight, cluster, score, loss, gradient_norm, source, …
        report: the HTML page.
        summary: the report's overview, to print with rich.
        cost: seconds of selecting and of training, as far as they are known.
    """

    selection: Selection
    subset: Path
    table: Path
    report: Path
    summary: RenderableType
    cost: Mapping[str, float | None] = field(default_factory=dict)


def publish(
    selection: Selection, features: Features, pool: Pool | None, subset: Path, *, render: Render | None = None,
    **about: Any,
) -> Result:  # fmt: skip
    """Write the subset and beside it the table and the report.

    Args:
        pool: where the chosen rows are copied from; without it the subset holds index, rank and weight.
        render: the text of a row, for the report.
        about: what else the report shows (settings, timings, cost, refused, …), see `ReportData`.
    """
    chosen = chosen_table(selection, features)
    refuse_overwriting(written(subset), [] if pool is None else [source.path for source in pool.sources])
    if pool is None:
        write_indices(chosen, subset)
    else:
        place = "row" if "row" in features.rows.column_names else "index"
        write_subset(pool, features.rows[place].to_numpy()[selection.indices], subset)
    table = beside(subset, CHOSEN)
    write_table(chosen.replace_schema_metadata({SUBSET_DIGEST: sha256_file(subset).encode()}), table)
    data = report_data(selection, features, chosen, render=render, **about)
    report = beside(subset, REPORT)
    write_report(data, report)
    return Result(selection, subset, table, report, terminal_summary(data), about.get("cost", {}))


def beside(subset: Path, ending: str) -> Path:
    """`subset.jsonl.gz` → `subset.<ending>`; other dots belong to the name."""
    endings = [known for known in SUBSET_ENDINGS if subset.name.endswith(known)] or [subset.suffix]
    return subset.with_name(f"{subset.name.removesuffix(endings[0])}.{ending}")


def read_chosen(subset: Path, rows: int, otherwise: str = "") -> pa.Table:
    """The table that was written beside a subset of so many rows.

    Args:
        otherwise: what else can be done where there is none.

    Raises:
        DataError: there is none, or it is another subset's.
    """
    path = beside(subset, CHOSEN)
    if not path.exists():
        raise DataError(
            f"is missing: it holds the subset's weights, and `pursuit select` writes it beside {subset.name}. Put it "
            f"there{otherwise}.",
            path=str(path),
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot be read ({error}). Select again, or put it back.", path=str(path)) from error
    if table.num_rows != rows:
        raise DataError(f"has {table.num_rows:,} rows, but {subset} has {rows:,}.", path=str(path))
    digest = (table.schema.metadata or {}).get(SUBSET_DIGEST)
    if digest is not None and digest.decode() != sha256_file(subset):
        raise DataError(
            f"was written beside another {subset.name}: the file has changed since, so that its rows may not be those "
            "that the weights are of. Select again.",
            path=str(path),
        )
    return table


def refuse_shared_table(subset: Path) -> None:
    """SettingsError if another subset of that name but for its ending has its table where this one's would be."""
    table = beside(subset, CHOSEN)
    stem = table.name.removesuffix(f".{CHOSEN}")
    if not table.exists():
        return
    try:
        digest = (pq.read_schema(table).metadata or {}).get(SUBSET_DIGEST, b"").decode()
    except (pa.ArrowException, OSError):  # a damaged one tells nothing, and is written anew
        return
    for other in (subset.with_name(stem + ending) for ending in SUBSET_ENDINGS):
        if other != subset and other.is_file() and sha256_file(other) == digest:
            raise SettingsError(
                f"{subset}: its table and report would take the place of {other.name}'s ({table.name}). Choose a name "
                "that differs by more than its ending."
            )


def written(subset: Path) -> list[Path]:
    """All files that `publish` writes."""
    return [subset, beside(subset, CHOSEN), beside(subset, REPORT)]


def chosen_table(selection: Selection, features: Features) -> pa.Table:
    """One row a chosen row, in order of choice.

    Columns: index (row of the features), rank (from 1), weight, cluster (-1 without), score (NaN without), loss and
    gradient_norm at the last checkpoint (NaN unknown), target (the set it was chosen for), and what the
    pool says of the row: source, path, line, lengths.
    """
    k, indices = len(selection), selection.indices
    about = features.rows.take(pa.array(indices))
    columns: dict[str, Any] = {
        "index": indices, "rank": np.arange(1, k + 1), "weight": selection.weights,
        "cluster": selection.clusters if selection.clusters is not None else np.full(k, -1),
        "score": selection.scores if selection.scores is not None else np.full(k, np.nan),
        "loss": features.losses[-1][indices], "gradient_norm": features.gradient_norms[-1][indices],
    }  # fmt: skip
    if "target" in selection.columns:
        names = [entry["target"] for entry in selection.diagnostics["targets"]]
        columns["target"] = [names[number] for number in selection.columns["target"]]
    columns |= {name: about[name] for name in about.column_names if name not in columns and not name.endswith("_hash")}
    return pa.table(columns)


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet, atomically."""
    with atomic_path(path) as partial:
        pq.write_table(table, partial)


def write_indices(table: pa.Table, path: Path) -> None:
    """For features without a pool: one JSON object a line with index, rank and weight."""
    lines = [
        f'{{"index": {index}, "rank": {rank}, "weight": {weight!r}}}\n'
        for index, rank, weight in zip(*(table[n].to_pylist() for n in ("index", "rank", "weight")), strict=True)
    ]
    write_text(path, "".join(lines))
