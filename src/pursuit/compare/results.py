"""Scores of cells put together: means over seeds with intervals, differences to random, the share of the gain kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Group
from rich.table import Table
from rich.text import Text
from scipy import stats

from pursuit.compare.plan import FULL, RANDOM, UNTRAINED, Cell, Comparison
from pursuit.finetune import FineTune
from pursuit.report.comparison import CompareData, Interval, MethodScore, MetricScores
from pursuit.selectors import parse_budget
from pursuit.versions import versions

Results = Sequence[tuple[Cell, Mapping[str, Any]]]
SHARE = "share of rows"
UNITS = {"loss": "nats a token", "exact": SHARE, "choice": SHARE, "choice_normalised": SHARE}
CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> Interval:
    """Mean and its 95% interval by Student's t over seeds.

    No interval from a single one, nor from several that agree exactly: shares of few rows do so by chance, and say
    nothing of their spread [ours].
    """
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return Interval(mean, mean - float(half), mean + float(half))


def comparison_data(comparison: Comparison, results: Results, num_rows: int, **about: Any) -> CompareData:
    """What the page shows; every metric of every way of training is a block of its own."""
    finished = [(cell, result) for cell, result in results if "scores" in result]
    metrics = list(dict.fromkeys(metric for _, result in finished for metric in result["scores"]))
    ways = comparison.ways()
    blocks = [_block(metric, way, len(ways) > 1, finished, num_rows) for metric in metrics for way in ways]
    failed = [(cell.name, str(result["failed"])) for cell, result in results if "failed" in result]
    how = {
        "comparison": {
            name: value if not isinstance(value, FineTune) else asdict(value)
            for name, value in vars(comparison).items()
        }
    }
    about["settings"] = {**how, **about.get("settings", {})}
    return CompareData(
        title=f"{', '.join(comparison.all_methods())} at {', '.join(map(str, comparison.budgets))}", metrics=blocks,
        pool_size=num_rows, failed=failed, versions=versions(), warnings=_warnings(comparison), **about,
    )  # fmt: skip


def _warnings(comparison: Comparison) -> list[str]:
    if comparison.seeds < 3:
        return [f"{comparison.seeds} seed(s): differences of this size may be chance. Three are the least to look at."]
    return []


def _block(metric: str, way: FineTune, named: bool, finished: Results, num_rows: int) -> MetricScores:
    mine = [(cell, result) for cell, result in finished if cell.way in (way, None) and metric in result["scores"]]
    groups: dict[tuple[str, Any], dict[int, Mapping[str, Any]]] = {}
    for cell, result in mine:
        groups.setdefault((cell.method, cell.budget), {})[cell.seed] = result
    untrained = groups.pop((UNTRAINED, None), {})
    start = untrained[0]["scores"][metric] if untrained else None
    whole = groups.pop((FULL, None), {})
    ends = _gain(metric, start, [result["scores"][metric] for result in whole.values()])
    scores = [
        _method(metric, method, by_seed, groups.get((RANDOM, budget), {}), ends, share_of(budget, num_rows))
        for (method, budget), by_seed in groups.items()
    ]
    return MetricScores(
        name=f"{metric}, {way.optimizer}, {way.schedule}" if named else metric, unit=UNITS.get(metric, ""),
        scores=scores, higher_is_better=metric != "loss", untrained=start,
        full=_method(metric, FULL, whole, {}, ends, 1.0) if whole else None,
    )  # fmt: skip


def _gain(metric: str, untrained: float | None, whole: Sequence[float]) -> tuple[float, float] | None:
    """Scores before and after training on the whole pool; None where that gains nothing to keep a share of.

    A gain is one that its interval over seeds tells from nothing [ours]: shares of less are noise.
    """
    if untrained is None or not whole:
        return None
    found = interval(whole)
    gain = (untrained - found.mean) if metric == "loss" else (found.mean - untrained)
    return (untrained, found.mean) if gain > (found.high - found.mean if found.known else 0.0) else None


def share_of(budget: str | int | float, num_rows: int) -> float:
    """A budget as a share of the pool, also where a method chose fewer."""
    return parse_budget(budget, num_rows) / num_rows


def _method(
    metric: str, method: str, by_seed: Mapping[int, Mapping[str, Any]], random: Mapping[int, Mapping[str, Any]],
    ends: tuple[float, float] | None, share: float,
) -> MethodScore:  # fmt: skip
    score = interval([result["scores"][metric] for result in by_seed.values()])
    paired = [
        result["scores"][metric] - random[seed]["scores"][metric] for seed, result in by_seed.items() if seed in random
    ]
    kept = (score.mean - ends[0]) / (ends[1] - ends[0]) if ends else None
    rows = round(float(np.mean([result["rows"] for result in by_seed.values()])))
    names = {family for result in by_seed.values() for family in result["families"][metric]}
    return MethodScore(
        method=method, budget=share, rows=rows, seeds=len(by_seed), score=score,
        to_random=interval(paired) if paired and method != RANDOM else None, gain_kept=kept,
        selection_seconds=_mean([result.get("selection_seconds") for result in by_seed.values()]),
        training_seconds=_mean([result.get("training_seconds") for result in by_seed.values()]),
        families={family: _family_mean(metric, family, by_seed) for family in sorted(names)},
    )  # fmt: skip


def _family_mean(metric: str, family: str, by_seed: Mapping[int, Mapping[str, Any]]) -> float:
    found = [result["families"][metric] for result in by_seed.values()]
    return float(np.mean([scores[family] for scores in found if family in scores]))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def runs_table(results: Results, num_rows: int) -> pa.Table:
    """A row a cell: method, budget, seed, optimizer, schedule, rows, steps, seconds, score.METRIC, or why it failed."""
    metrics = list(dict.fromkeys(metric for _, result in results for metric in result.get("scores", ())))
    rows = []
    for cell, result in results:
        scores = result.get("scores", {})
        rows.append({
            "method": cell.method, "budget": None if cell.budget is None else str(cell.budget), "seed": cell.seed,
            "optimizer": cell.way.optimizer if cell.way else None, "schedule": cell.way.schedule if cell.way else None,
            "rows": result["rows"], "share": result["rows"] / num_rows, "steps": result.get("steps"),
            "epochs": result.get("epochs"), "selection_seconds": result.get("selection_seconds"),
            "training_seconds": result.get("training_seconds"), "failed": result.get("failed"),
            **{f"score.{metric}": scores.get(metric) for metric in metrics},
        })  # fmt: skip
    return pa.Table.from_pylist(rows)


def terminal_table(data: CompareData) -> Group:
    """For the terminal: a table a metric, the best first."""
    parts: list[Any] = []
    for block in data.metrics:
        sign = -1 if block.higher_is_better else 1
        names = ("", "rows", block.name, "to random", "gain kept", "select s", "train s")
        table = Table(*names, box=None, padding=(0, 2, 0, 0))
        for found in sorted(block.scores, key=lambda found: (found.budget, sign * found.score.mean)):
            table.add_row(*_cells(found))
        if block.full is not None:
            table.add_row(*_cells(block.full))
        if block.untrained is not None:
            table.add_row(Text(UNTRAINED), "0", f"{block.untrained:.4f}", "", "", "", "")
        parts += [table, Text()]
    parts += [Text(f"failed: {name}: {why}", style="red") for name, why in data.failed]
    return Group(*parts, *(Text(warning) for warning in data.warnings))


def _cells(found: MethodScore) -> list[str]:
    return [
        found.method, f"{found.rows:,}", _spread(found.score),
        "" if found.to_random is None else _spread(found.to_random),
        "" if found.gain_kept is None else f"{found.gain_kept:.0%}", _seconds(found.selection_seconds),
        _seconds(found.training_seconds),
    ]  # fmt: skip


def _spread(value: Interval) -> str:
    return f"{value.mean:z.4f}" + (f" ± {(value.high - value.low) / 2:.4f}" if value.known else "")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
