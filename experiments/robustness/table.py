"""The results of one study as a short page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments.composition import composition_table
from experiments.plots import budget_chart
from experiments.records import Record, columns_table, markdown_table, part_of, score_table
from pursuit.files import write_text

SMALL = "A small CPU setting, not the papers' scale."
EXPECTED, FOUND = Path(__file__).parent / "expected.md", Path(__file__).parent / "found.md"


def write_table(record: Record, path: Path) -> str:
    """Write the page; the text of it."""
    name = record["study"]
    parts = [f"# Does the choice hold: {name}", _about(record), "## Expected", part_of(name, EXPECTED)]
    if FOUND.exists():
        parts += ["## Found", part_of(name, FOUND)]
    for goal, columns in record["goals"].items():
        parts += [f"## {goal[0].upper()}{goal[1:]}", f"Held out: {next(iter(columns.values()))['evaluation']}."]
        parts += list(_scores(columns))
        failed = [pair for comparison in columns.values() for pair in comparison["failed"]]
        parts += [f"Failed: {name}: {why}" for name, why in failed]
    if "residuals" in record:
        parts += ["## Residual by iteration, relative to the goal's length", _residuals(record["residuals"])]
    for method, shared in record.get("overlaps", {}).items():
        lines = [["", *shared], *([a, *(f"{share:.2f}" for share in row.values())] for a, row in shared.items())]
        parts += [f"## Rows that two choices by {method} share", markdown_table(lines)]
    if "chosen" in record:
        parts += ["## What was chosen", composition_table(record["chosen"])]
    if name == "budgets":
        parts += list(_charts(record["goals"], path))
    text = "\n\n".join(parts) + "\n"
    write_text(path, text)
    return text


def _residuals(curves: Record) -> str:
    longest = max(map(len, curves.values()))
    lines = [["", *map(str, range(1, longest + 1))]]
    for name, values in curves.items():
        lines.append([name, *(f"{value:.3f}" for value in values), *[""] * (longest - len(values))])
    return markdown_table(lines)


def _charts(goals: Record, path: Path) -> Iterator[str]:
    for goal, columns in goals.items():
        chart = path.with_name(f"{path.stem}-{goal}.svg")
        budget_chart(f"Held-out loss by budget, {goal}, with 95 % intervals", list(columns.values()), "loss", chart)
        yield f"![Held-out loss by budget, {goal}]({chart.name})"


def _scores(columns: Record) -> Iterator[str]:
    for metric in next(iter(columns.values()))["metrics"]:
        if len(columns) == 1:
            yield from (score_table(metric, one["metrics"][metric]) for one in columns.values())
        else:
            yield columns_table(metric, columns)
            yield columns_table(metric, columns, to_random=True)


def _where(record: Record, gpu: str | None) -> str:
    machine = record["machine"]
    if gpu:
        return f"{gpu}, {machine['cores']} cores ({machine['processor']}), several processes on the one GPU"
    return (
        f"{record['cpu_seconds'] / 60:.0f} CPU minutes (more if it was killed on the way), Java's not counted; "
        f"{machine['processor']}, {machine['cores']} cores shared with other work, {machine['threads']} thread"
    )


def _about(record: Record) -> str:
    gpu = record["machine"].get("gpu")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    seeds = len(record["seeds"])
    command = f"python -m experiments.robustness --studies {record['study']}"
    command += "" if seeds == 3 else f" --seeds {seeds}"
    return (
        f"Made by `{command}`; all numbers are in "
        f"`robustness-{record['study']}.json`. {'' if gpu else SMALL}\n\n"
        f"- {record['about']}\n"
        "- What is not named is as in [textgames.md](textgames.md) or [mixed.md](mixed.md), 5 % of the pool; gradients "
        "are pursuit's own (Adam's steps without momentum; the target's alike for GTP).\n"
        f"- Seeds {', '.join(map(str, record['seeds']))}. ±: 95 %, Student's t over seeds. To random: difference at "
        "the same budget, paired by seed.\n"
        f"- {_where(record, gpu)}; {versions}."
    )
