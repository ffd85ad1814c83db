"""The trainings of a study put together, and as one short page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import Record, markdown_table, part_of, spread
from pursuit.compare.results import interval
from pursuit.files import write_text

EXPECTED, FOUND = Path(__file__).parent / "expected.md", Path(__file__).parent / "found.md"
TITLES = {"equal_steps": "At equal steps", "equal_flops": "At equal operations"}
Cells = Sequence[Mapping[str, Any]]


def summary(cells: Cells) -> list[dict[str, Any]]:
    """Of each arm: means over seeds with 95% intervals, and differences paired by seed to full and to random."""
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        by_arm.setdefault(cell["arm"], {})[cell["seed"]] = cell
    return [_summary(arm, by_arm) for arm in by_arm]


def _summary(arm: str, by_arm: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    mine, full = by_arm[arm], by_arm["full"]
    random = by_arm.get(f"random {arm.rpartition(' ')[2]}", {})
    found: dict[str, Any] = {"arm": arm, "seeds": len(mine)}
    for what in ("steps", "trained_examples"):
        found[what] = float(np.mean([cell[what] for cell in mine.values()]))
    for what in ("cpu_seconds", "flops"):
        found[what] = _interval([cell[what] for cell in mine.values()])
        found[f"{what}_of_full"] = _interval([cell[what] / full[seed][what] for seed, cell in mine.items()])
    for metric in ("loss", "exact"):
        found[metric] = _interval([cell[metric] for cell in mine.values()])
        for name, others in (("full", full), ("random", random)):
            apart = [cell[metric] - others[seed][metric] for seed, cell in mine.items() if seed in others]
            found[f"{metric}_to_{name}"] = None if others in (mine, {}) else _interval(apart)
    return found


def _interval(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(number) else float(f"{number:.6g}") for number in interval(values)]


def write_table(record: Record, path: Path) -> str:
    """Write the page; the text of it."""
    name = record["study"]
    parts = [f"# OptBatch in small: {name}", _about(record), "## Expected", part_of(name, EXPECTED)]
    if FOUND.exists():
        parts += ["## Found", part_of(name, FOUND)]
    for which, title in TITLES.items():
        parts += [f"## {title}", _scores(record[which], record["untrained"])]
    text = "\n\n".join(parts) + "\n"
    write_text(path, text)
    return text


def _about(record: Record) -> str:
    machine, recipe = record["machine"], record["recipe"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"Made by `python -m experiments.optbatch`; all numbers are in `optbatch-{record['study']}.json`. A small CPU "
        "setting of the experiment, not the paper's scale.\n\n"
        f"- {record['about']}: {record['pool_rows']:,} rows, {record['heldout_rows']:,} held out; scores are means of "
        "the families' means.\n"
        f"- A step: {recipe['batch_size']} candidates; {recipe['optimizer']}, peak learning rate "
        f"{recipe['learning_rate']}, {recipe['schedule']} over the training whatever its length. Selectors with their "
        "default settings but for the pruning rate.\n"
        f"- Equal steps: {record['steps']}. Equal operations: as many steps as the ratio of counted operations at "
        "equal steps allows, median over the seeds so far.\n"
        f"- Seeds {', '.join(map(str, record['seeds']))} (order of rows, choice"
        f"{'' if record['lora'] is None else ', first weights of the LoRA'}). ±: 95%, Student's t over seeds; "
        "differences are paired by seed.\n"
        "- CPU: processor seconds of the training's process, scoring and choosing included, evaluation not; other work "
        "ran beside it, which disturbs these by up to a quarter. FLOPs: counted, as docs/online.md says.\n"
        f"- {_minutes(record):.0f} CPU minutes of training; {machine['processor']}, {machine['cores']} cores, "
        f"{machine['threads']} thread; {versions}."
    )


def _minutes(record: Record) -> float:
    """Of all trainings; one that is at equal steps and at equal cost both was made once."""
    every = [cell for which in TITLES for cell in record["trainings"][which]]
    return sum({(cell["arm"], cell["seed"], cell["steps"]): cell["cpu_seconds"] for cell in every}.values()) / 60


def _scores(arms: Sequence[Record], first: Mapping[str, float]) -> str:
    lines = [
        ["", "steps", "examples trained on", "CPU of full's", "FLOPs of full's", "**loss**", "to full", "to random",
         "**exact**", "to full", "to random"],
        ["before", "0", "0", "", "", f"{first['loss']:.3f}", "", "", f"{first['exact']:.3f}", "", ""],
    ]  # fmt: skip
    for one in arms:
        line = [one["arm"], f"{one['steps']:.0f}", f"{one['trained_examples']:,.0f}"]
        line += [f"{one['cpu_seconds_of_full'][0]:.2f}", f"{one['flops_of_full'][0]:.2f}"]
        for metric in ("loss", "exact"):
            line.append(spread(one[metric]))
            line += [spread(one[f"{metric}_to_{other}"], sign=True) for other in ("full", "random")]
        lines.append(line)
    return markdown_table(lines)
