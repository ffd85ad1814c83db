"""Sections about the choice as a whole: residual, support, time of the parts, agreement."""

from __future__ import annotations

from typing import Any

from pursuit.report.data import ReportData
from pursuit.report.text import UNKNOWN, count, duration, known, number, percent

Context = dict[str, Any]


def by_curve(data: ReportData) -> Context:
    """Residuals at a few steps, for those who read the table and not the chart."""
    named = {name: curve for name, curve in data.residuals.items() if len(curve)}
    longest = max([len(curve) for curve in named.values()], default=0)
    steps = sorted({max(1, round(longest * part / 10)) for part in range(1, 11)} | {1}) if longest else []
    changes = {name: entered for name, entered in data.support_changes.items() if len(entered)}
    rows = [
        [
            count(step), *(number(curve[step - 1]) if step <= len(curve) else UNKNOWN for curve in named.values()),
            *(count(entered[step - 1]) if step <= len(entered) else UNKNOWN for entered in changes.values()),
        ]
        for step in steps
    ]  # fmt: skip
    columns = [(data.step, True), *((name, True) for name in named)]
    columns += [("rows that entered" + (f" ({name})" if len(changes) > 1 else ""), True) for name in changes]
    longest_part = max([seconds for _, seconds in data.parts], default=0.0) or 1.0
    return {
        "curve_columns": columns, "curve_rows": rows, "by_iteration": data.step == "iteration",
        "part_rows": [
            {"stage": part, "time": duration(seconds), "width": seconds / longest_part, "note": ""}
            for part, seconds in data.parts
        ],
        "part_total": duration(sum(seconds for _, seconds in data.parts)),
    }  # fmt: skip


def by_agreement(data: ReportData) -> Context:
    """How much of the choice comes back, against chance."""
    agreement = data.agreement
    if agreement is None:
        return {"agreement_bars": [], "agreement_left_out": [], "agreement_notes": [], "agreement_nearest": False}
    nearest = any(known(entry.nearest) for entry in [*agreement.entries, *agreement.between])
    bars = [
        {
            "name": entry.name, "kept": percent(entry.kept), "width": min(1.0, max(0.0, entry.kept)),
            "nearest": f"{entry.nearest:.2f}" if known(entry.nearest) else "", "kind": "chosen",
        }
        for entry in [*agreement.entries, *agreement.between]
    ]  # fmt: skip
    if bars:
        chance = f"{agreement.nearest_by_chance:.2f}" if known(agreement.nearest_by_chance) else ""
        bars.append({
            "name": "a random choice", "kept": percent(agreement.by_chance), "width": agreement.by_chance,
            "nearest": chance, "kind": "pool",
        })  # fmt: skip
    return {
        "agreement_bars": bars, "agreement_left_out": list(agreement.left_out),
        "agreement_notes": list(agreement.notes), "agreement_nearest": nearest,
    }  # fmt: skip
