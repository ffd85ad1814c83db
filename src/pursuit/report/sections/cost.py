"""The section on time and money."""

from __future__ import annotations

from typing import Any

from pursuit.report.data import ReportData
from pursuit.report.summary import known_cost, saving
from pursuit.report.text import about, duration, money

LABELS = (
    ("Selection", "ink", "selection_seconds"),
    ("Train on chosen", "chosen", "subset_training_seconds"),
    ("Train on pool", "pool", "full_training_seconds"),
)


def time_and_cost(data: ReportData) -> dict[str, Any]:
    """Stage timings, and what training costs with and without the selection, in money too where time has a price."""
    longest = max([seconds for _, seconds, _ in data.timings], default=0.0) or 1.0
    cost, price = known_cost(data), data.price_per_hour
    costs = [(name, kind, cost[key]) for name, kind, key in LABELS if key in cost]
    highest = max([seconds for _, _, seconds in costs], default=0.0) or 1.0
    ratio = saving(data)
    sentence = ""
    if ratio is not None:
        word = f"{about(ratio)} times less than" if ratio >= 1.05 else "no saving against"
        sentence = f"Selecting and training on the chosen together take {word} training on the whole pool."

    def amount(seconds: float) -> str:
        return duration(seconds) if price is None else f"{duration(seconds)}, {money(seconds, price, data.currency)}"

    together = cost.get("selection_seconds", 0.0) + cost.get("subset_training_seconds", 0.0)
    rows = [[name, duration(seconds), money(seconds, price, data.currency)] for name, _, seconds in costs]
    if len(costs) == len(LABELS):
        rows.insert(2, ["Both together", duration(together), money(together, price, data.currency)])
    total = sum(seconds for _, seconds, _ in data.timings)
    return {
        "timing_rows": [
            {"stage": stage, "time": duration(seconds), "width": seconds / longest, "note": note}
            for stage, seconds, note in data.timings
        ],
        "timing_total": f"Together {duration(total)}.",
        "cost_bars": [
            {"name": name, "kind": kind, "value": amount(seconds), "width": seconds / highest}
            for name, kind, seconds in costs
        ],
        "cost_columns": [("", False), ("time", True), *([] if price is None else [("money", True)])],
        "cost_rows": rows if price is not None else [row[:2] for row in rows],
        "price_note": "" if price is None else f"Money: {money(3600, price, data.currency)} an hour.",
        "saving": sentence,
    }  # fmt: skip
