"""The results as one short page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments.gradients import EXPLAINED
from experiments.plots import curve_chart, score_chart
from experiments.records import Record, gradients_table, markdown_table, score_table
from pursuit.files import write_text

EXPECTED, FOUND = Path(__file__).parent / "expected.md", Path(__file__).parent / "found.md"
TITLES = {"targeted": "Targeted at three kinds of games", "in-domain": "In-domain, all kinds"}


def write_table(record: Record, path: Path) -> str:
    """Write the page, and its charts beside it; the text of the page."""
    parts = [
        "# Text games, in small", _about(record), "## Expected", EXPECTED.read_text(encoding="utf-8").strip(),
    ]  # fmt: skip
    if FOUND.exists():
        parts += ["## Found", FOUND.read_text(encoding="utf-8").strip()]
    for name, comparison in record["comparisons"].items():
        if name not in TITLES:
            continue  # by other gradients: below
        parts += [f"## {TITLES[name]}; gradients as published", f"Held out: {comparison['evaluation']}."]
        for metric, found in comparison["metrics"].items():
            chart = path.with_name(f"{path.stem}-{name}-{metric}.svg")
            score_chart(metric, found, chart)
            parts += [score_table(metric, found), f"![{metric} by method]({chart.name})"]
        parts += [f"Failed: {name}: {why}" for name, why in comparison["failed"]]
    parts += list(_by_gradients(record["comparisons"]))
    parts += ["## What was chosen", _chosen(record["chosen"]), "## Residual", _residuals(record["chosen"])]
    chart = path.with_name(f"{path.stem}-residual.svg")
    curve_chart("Residual by iteration, towards the targets", _drawn(record["chosen"]), chart)
    parts.append(f"![Residual by iteration]({chart.name})")
    text = "\n\n".join(parts) + "\n"
    write_text(path, text)
    return text


def _by_gradients(comparisons: Record) -> Iterator[str]:
    for name, title in TITLES.items():
        split = {other: other.partition(", ") for other in comparisons}
        kinds = {kind or "as published": comparisons[other] for other, (mine, _, kind) in split.items() if mine == name}
        if len(kinds) < 2:
            continue
        yield f"## {title}, by gradients"
        for metric in comparisons[name]["metrics"]:
            yield gradients_table(metric, kinds)


def _about(record: Record) -> str:
    data, machine, training, first = (record[name] for name in ("data", "machine", "training", "first_training"))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        "Made by `python -m experiments.textgames`; all numbers are in `textgames.json`. A small CPU setting of the "
        "experiment, not the papers' scale.\n\n"
        f"- Model: a Llama of 0.9 million weights from random ones, trained for {first['max_steps']} steps of "
        f"{first['batch_size']} on {data['first_rows']:,} other steps of games of the same kinds.\n"
        f"- Pool: {data['pool_rows']:,} steps of {', '.join(record['kinds'])}: {data['clean']:,} as they are, "
        f"{data['copies']:,} copies of these, {data['wrong']:,} with another action as answer.\n"
        f"- Each training: all weights, {training['max_steps']} steps of {training['batch_size']} rows, "
        f"{training['optimizer']}, peak learning rate {training['learning_rate']}, whatever the number of rows; seeds "
        f"{', '.join(map(str, record['seeds']))} (selection and order of rows).\n"
        f"- Intervals: 95 %, Student's t over seeds. To random: difference at the same budget, paired by seed.\n"
        f"{EXPLAINED}\n"
        f"- {record['cpu_seconds'] / 60:.1f} CPU minutes of Python (more if it was killed on the way), without "
        f"Java's; {machine['processor']}, {machine['cores']} cores shared with other work, "
        f"{machine['threads']} thread; {versions}."
    )


def _chosen(chosen: list[Record]) -> str:
    alike: dict[tuple[str, ...], list[Record]] = {}
    what: tuple[str, ...]
    for one in chosen:
        if one["method"] == "random" and one.get("gradients"):
            continue  # the same rows whatever the gradients
        what = (_name(one), f"{one['rows']:,}", f"{one['of_target_kinds']:.0%}", f"{one['wrong']:.1%}",
                str(one["repeated"]), ", ".join(f"{kind} {count}" for kind, count in one["kinds"].items()))  # fmt: skip
        alike.setdefault(what, []).append(one)
    lines = [["", "rows", "of target kinds", "wrong answers", "said before", "kinds", "seeds", "selection s"]]
    for what, ones in sorted(alike.items(), key=lambda item: int(item[0][1].replace(",", ""))):
        seeds = ", ".join(sorted(str(one["seed"]) for one in ones if "seed" in one))
        seconds = [one["seconds"] for one in ones if "seconds" in one]
        lines.append([*what, seeds, f"{sum(seconds) / len(seconds):.2f}" if seconds else ""])
    return (
        markdown_table(lines)
        + "\n\n*Said before*: rows with the prompt and answer of a row that was chosen too. Seconds are wall time on a "
        "busy machine, without the gradients."
    )


def _name(one: Record) -> str:
    parameters = one.get("parameters") or {}
    marks = ["in-domain"] * bool(one.get("in_domain")) + ["refine=none"] * (parameters.get("refine") == "none")
    marks += ["by quotas"] * bool(parameters.get("quotas"))
    if one["method"] == "tagcos":
        marks.append(f"K = {parameters['clusters']}, ridge {parameters['ridge']:g}")
    marks += [one["gradients"]] if one.get("gradients") else []
    return ", ".join([one["method"], *marks])


def _residuals(chosen: list[Record]) -> str:
    lines = [["goal", "method", "rows", "curve", "residual by iteration (first, quarters, last)"]]
    for row in _curves(chosen):
        lines.append(row)
    return markdown_table(lines) + "\n\nRelative to the goal's length; every iteration is in `textgames.json`."


def _drawn(chosen: list[Record]) -> list[tuple[str, list[float]]]:
    """What follows the targets at the larger budget."""
    mine = [one for one in chosen if one.get("residuals") and one["seed"] == 0 and not one["in_domain"]]
    mine = [one for one in mine if one["method"] == "gtp" and one["parameters"].get("refine") != "none"]
    largest = max(one["rows"] for one in mine)
    return [(_name(one), next(iter(one["residuals"].values()))) for one in mine if one["rows"] == largest]


def _curves(chosen: list[Record]) -> Iterator[list[str]]:
    largest = max(one["rows"] for one in chosen if one.get("residuals"))
    for one in chosen:
        if not one.get("residuals") or one["seed"] != 0:
            continue
        goal = "pool" if one["in_domain"] else "targets"
        for curve, values in one["residuals"].items():
            if one.get("gradients") and ("most similar" in curve or one["rows"] < largest):
                continue
            places = sorted({round(share * (len(values) - 1)) for share in (0, 0.25, 0.5, 0.75, 1)})
            numbers = ", ".join(f"{values[place]:.3f}" for place in places)
            yield [goal, _name(one), f"{one['rows']:,}", curve, numbers]
