"""Tables of the comparison, with a number beside every cell to sort by."""

from __future__ import annotations

import math
from typing import Any

from pursuit.report.comparison.data import FULL, CompareData, MethodScore, MetricScores
from pursuit.report.comparison.findings import at, beyond_random, budgets_of, families_of, interval_text
from pursuit.report.text import UNKNOWN, count, duration, known, money, number, percent

MOST_RUNS = 1_000
MOST_FAMILIES = 30
DEEPEST = 45  # percent of colour in the cell that is furthest from random: the text stays readable on it

Cell = dict[str, Any]


def _cell(text: str, key: float | str | None, mark: str = "") -> Cell:
    """A cell and what to sort it by; a NaN or None goes last."""
    unknown = key is None or (isinstance(key, float) and not math.isfinite(key))
    return {"text": text, "mark": mark, "ground": "", "depth": "",
            "key": "" if unknown else f"{key:.12g}" if isinstance(key, int | float) else key}  # fmt: skip


def score_table(data: CompareData, metric: MetricScores) -> dict[str, Any]:
    """A row a method and budget."""
    price = data.price_per_hour
    scores = [score for budget in budgets_of(metric) for score in at(metric, budget)]
    scores += [metric.full] if metric.full is not None else []
    rows = []
    for score in scores:
        beyond = beyond_random(metric, score)
        row = [
            _cell(score.method, score.method), _cell(percent(score.budget), score.budget),
            _cell(count(score.rows), score.rows), _cell(count(score.seeds), score.seeds),
            _cell(interval_text(score.score), score.score.mean),
            _cell(interval_text(score.to_random, True), score.to_random.mean if score.to_random else None,
                  {1: "better", -1: "worse", 0: ""}[beyond]),
            _cell(percent(score.gain_kept), score.gain_kept),
            _cell(duration(score.selection_seconds), score.selection_seconds),
            _cell(duration(score.training_seconds), score.training_seconds),
        ]  # fmt: skip
        rows.append([*row, _cell(money(score.seconds or 0.0, price, data.currency), score.seconds)] if price else row)
    columns = [
        ("method", False), ("budget", True), ("rows", True), ("seeds", True), (metric.name, True),
        ("against random", True), ("of the full gain", True), ("selecting", True), ("training", True),
        *([("money", True)] if price else []),
    ]  # fmt: skip
    return {"columns": columns, "rows": rows}


def family_table(metric: MetricScores, budget: float) -> dict[str, Any] | None:
    """A row a method at one budget, a column a family; colour is the difference to random."""
    scores = [*at(metric, budget), *([metric.full] if metric.full is not None else [])]
    families = families_of(scores)[:MOST_FAMILIES]
    if len(families) < 2:
        return None
    base = next((score.families for score in scores if score.method == "random"), {})
    gaps = [
        abs(score.families[name] - base[name])
        for score in scores for name in families if name in score.families and name in base
    ]  # fmt: skip
    widest = max((gap for gap in gaps if known(gap)), default=0.0) or 1.0
    rows = []
    for score in scores:
        cells = [_cell(score.method, score.method)]
        for name in families:
            value = score.families.get(name)
            cells.append({**_cell(number(value), value), **_shade(metric, value, base.get(name), widest)})
        rows.append(cells)
    return {
        "budget": percent(budget), "columns": [("method", False), *((name, True) for name in families)], "rows": rows,
        "more": max(0, len(families_of(scores)) - MOST_FAMILIES), "with_random": bool(base),
    }  # fmt: skip


def _shade(metric: MetricScores, value: float | None, base: float | None, widest: float) -> Cell:
    if value is None or base is None or not known(value) or not known(base) or value == base:
        return {}
    good = (value > base) == metric.higher_is_better
    return {"ground": "good" if good else "bad", "depth": f"{DEEPEST * abs(value - base) / widest:.0f}"}


def run_table(data: CompareData) -> dict[str, Any]:
    """Every run, as it was given."""
    if data.runs is None or not data.runs.num_rows:
        return {"columns": [], "rows": [], "note": ""}
    numeric = {name: str(data.runs.schema.field(name).type) not in ("string", "large_string") for name in
               data.runs.column_names}  # fmt: skip
    rows = [
        [_run_cell(value) for value in row.values()] for row in data.runs.slice(0, MOST_RUNS).to_pylist()
    ]  # fmt: skip
    total = data.runs.num_rows
    note = f"The first {count(MOST_RUNS)} of {count(total)} runs." if total > MOST_RUNS else f"{count(total)} runs."
    return {"columns": list(numeric.items()), "rows": rows, "note": note}


def _run_cell(value: Any) -> Cell:
    if value is None:
        return _cell(UNKNOWN, None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _cell(number(float(f"{value:.6g}")), float(value))
    return _cell(str(value), str(value))


def tiles(data: CompareData, methods: list[str]) -> list[dict[str, str]]:
    """The first numbers to see."""
    if not data.metrics:
        return []
    metric = data.metrics[0]
    seeds = [score.seeds for score in metric.scores]
    budgets = budgets_of(metric)
    found = [
        ("Methods", count(len(methods)), "compared" + (f", and {FULL}" if metric.full is not None else "")),
        ("Budgets", count(len(budgets)), ", ".join(percent(budget) for budget in budgets[:4])),
        ("Seeds", _span(seeds), "runs of each"),
    ]
    best = _best(metric)
    if best is not None:
        name = f"{best.method} at {percent(best.budget)}"
        found.append(("Best subset", number(float(f"{best.score.mean:.4g}")), name))
        if best.gain_kept is not None and known(best.gain_kept):
            found.append(("Full gain kept", percent(best.gain_kept), f"by {name}"))
    whole = metric.full.score.mean if metric.full else None
    for name, value in (("Whole pool", whole), ("Untrained", metric.untrained)):
        if value is not None and known(value):
            found.append((name, number(float(f"{value:.4g}")), metric.name))
    return [{"name": name, "value": value, "detail": detail} for name, value, detail in found]


def _best(metric: MetricScores) -> MethodScore | None:
    every = [score for budget in budgets_of(metric) for score in at(metric, budget)[:1]]
    if not every:
        return None
    return max(every, key=lambda score: score.score.mean if metric.higher_is_better else -score.score.mean)


def _span(numbers: list[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return count(low) if low == high else f"{count(low)} to {count(high)}"
