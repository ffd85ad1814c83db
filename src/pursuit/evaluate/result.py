"""What an evaluation found: scores over all rows, over families and in each; a value for every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pursuit.errors import StoreError
from pursuit.evaluate.intervals import Score, macro_score, score
from pursuit.files import atomic_path, read_json, write_json

RESULT, EXAMPLES = "evaluation.json", "examples.parquet"
SHOWN_FAMILIES = 40  # in the terminal; the files have all


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of one model. `loss` is in nats a token (lower is better); `exact` and `choice` are shares of rows.

    Attributes:
        overall: metric → mean over all its rows.
        macro: metric → mean of the families' means, each family counting the same.
        families: family (source) → metric → score.
        left_out: metric → rows that it does not apply to (no options, no prompt), which are in none of its means.
        examples: one row each, with the columns index, source, path, line, and what was asked for: loss, prediction,
            reference, exact, choice, choice_normalised, chosen, and one by the name of each scorer and player. Null
            where a metric does not apply.
        benchmarks: lm-eval task → its measures.
        settings: what the scores depend on.
    """

    overall: Mapping[str, Score]
    macro: Mapping[str, Score]
    families: Mapping[str, Mapping[str, Score]]
    left_out: Mapping[str, int]
    examples: pa.Table
    benchmarks: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything but the examples, JSON-able."""
        return {
            "overall": {metric: asdict(found) for metric, found in self.overall.items()},
            "macro": {metric: asdict(found) for metric, found in self.macro.items()},
            "families": {
                family: {metric: asdict(found) for metric, found in metrics.items()}
                for family, metrics in self.families.items()
            },
            "left_out": dict(self.left_out),
            "benchmarks": {task: dict(measures) for task, measures in self.benchmarks.items()},
            "settings": dict(self.settings),
        }

    def save(self, folder: str | Path) -> Path:
        """Write evaluation.json and examples.parquet into a folder, each whole or not at all; returns the former."""
        folder = Path(folder)
        with atomic_path(folder / EXAMPLES) as partial:
            pq.write_table(self.examples, partial)
        write_json(folder / RESULT, self.to_json())
        return folder / RESULT

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        folder = Path(folder)
        try:
            stored, examples = read_json(folder / RESULT), pq.read_table(folder / EXAMPLES)
            families = {family: _scores(metrics) for family, metrics in stored["families"].items()}
            return cls(
                _scores(stored["overall"]), _scores(stored["macro"]), families, stored["left_out"], examples,
                stored["benchmarks"], stored["settings"],
            )  # fmt: skip
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise StoreError(f"{folder}: holds no whole evaluation ({error}). Evaluate again.") from error

    def table(self) -> Group:
        """For the terminal: all rows first, then the mean of families, then each family."""
        metrics = list(self.overall)
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("", no_wrap=True)
        for metric in metrics:
            table.add_column(metric.replace("_", " "))
        table.add_row(Text("all rows", style="bold"), *(_cell(self.overall.get(metric)) for metric in metrics))
        if len(self.families) > 1:
            table.add_row(Text("mean of families", style="bold"), *(_cell(self.macro.get(name)) for name in metrics))
            for family, found in list(self.families.items())[:SHOWN_FAMILIES]:
                table.add_row(Text(family), *(_cell(found.get(metric)) for metric in metrics))
        lines: list[Table | Text] = [table] if metrics else []
        if len(self.families) > SHOWN_FAMILIES:
            lines.append(Text(f"… and {len(self.families) - SHOWN_FAMILIES} more families in the files", style="dim"))
        for metric, count in self.left_out.items():
            if count and metric != "choice_normalised":  # as choice
                lines.append(Text(f"{metric}: {count:,} of {len(self.examples):,} rows do not have what it needs"))
        if self.benchmarks:
            lines.append(_benchmark_table(self.benchmarks))
        return Group(*lines)


def summarise(
    examples: pa.Table, metrics: Sequence[str], benchmarks: Mapping[str, Mapping[str, float | None]],
    settings: Mapping[str, Any],
) -> Evaluation:  # fmt: skip
    """Means and intervals of the named columns of a table with the column source; families by name."""
    sources = np.array(examples["source"].to_pylist(), dtype=object)
    overall, macro, left_out = {}, {}, {}
    families: dict[str, dict[str, Score]] = {str(name): {} for name in sorted(set(sources))}
    for metric in metrics:
        values = examples[metric].to_numpy(zero_copy_only=False).astype(np.float64)  # null becomes NaN
        given = ~np.isnan(values)
        left_out[metric] = int((~given).sum())
        if not given.any():
            continue
        by_family = {name: values[given & (sources == name)] for name in families}
        by_family = {name: found for name, found in by_family.items() if len(found)}
        overall[metric] = score(values[given])
        macro[metric] = macro_score(list(by_family.values()))
        for name, found in by_family.items():
            families[name][metric] = score(found)
    return Evaluation(overall, macro, families, left_out, examples, benchmarks, settings)


def nullable(values: NDArray[np.float64]) -> pa.Array:
    """Float column with null where a value is NaN."""
    return pa.array(values, mask=np.isnan(values), type=pa.float64())


def _scores(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    return {metric: Score(**values) for metric, values in stored.items()}


def _cell(found: Score | None) -> str:
    """The mean and half the interval's width, or its ends where it is not symmetric (shares of rows)."""
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.mean:.3f}"
    below, above = found.mean - found.low, found.high - found.mean
    if abs(above - below) < 0.001:
        return f"{found.mean:.3f} ± {above:.3f}"
    return f"{found.mean:.3f}\n[{found.low:.3f}, {found.high:.3f}]"


def _benchmark_table(benchmarks: Mapping[str, Mapping[str, float | None]]) -> Table:
    table = Table("lm-eval", "measure", "value", "± standard error", box=None, padding=(0, 2, 0, 0))
    for task, measures in benchmarks.items():
        for name, value in measures.items():
            if not name.endswith("_stderr"):
                error = measures.get(f"{name}_stderr")
                table.add_row(task, name, _number(value), _number(error))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
