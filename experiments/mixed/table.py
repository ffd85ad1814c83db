"""The results as one short page of Markdown."""

from __future__ import annotations

from pathlib import Path

from experiments.plots import score_chart
from experiments.records import Record, markdown_table, score_table
from pursuit.files import write_text

EXPECTED, FOUND = Path(__file__).parent / "expected.md", Path(__file__).parent / "found.md"


def write_table(record: Record, path: Path) -> str:
    """Write the page, and its chart beside it; the text of the page."""
    comparison = record["comparison"]
    parts = ["# The mixed pool, in small", _about(record), "## Expected", EXPECTED.read_text(encoding="utf-8").strip()]
    if FOUND.exists():
        parts += ["## Found", FOUND.read_text(encoding="utf-8").strip()]
    parts += ["## Scores", f"Held out: {comparison['evaluation']}. Loss in nats a token, lower is better."]
    for metric, found in comparison["metrics"].items():
        chart = path.with_name(f"{path.stem}-{metric}.svg")
        score_chart(metric, found, chart)
        parts += [score_table(metric, found), f"![{metric} by method]({chart.name})"]
    parts += [f"Failed: {name}: {why}" for name, why in comparison["failed"]]
    parts += ["## What was chosen", _chosen(record["chosen"]), "## Cost", _cost(record)]
    text = "\n\n".join(parts) + "\n"
    write_text(path, text)
    return text


def _about(record: Record) -> str:
    data, machine, training, run = (record[name] for name in ("data", "machine", "training", "run"))
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    collections = ", ".join(f"{name} {count}" for name, count in data["collections"].items())
    held = sum(data["eval_families"].values())
    return (
        "Made by `python -m experiments.mixed`; all numbers are in `mixed.json`. A small CPU setting of the "
        "experiment, not the papers' scale.\n\n"
        f"- Model: SmolLM2-135M-Instruct, LoRA of rank {run['lora']['rank']} on the attention projections of its last "
        "ten layers.\n"
        f"- Pool: {data['rows']['pool']:,} rows of {data['families']} families, at most {data['max_characters']} "
        f"characters of prompt and answer ({collections}; the definitions of Natural Instructions are longer than "
        f"that); {held} of its rows are of the held-out families. Target: {data['rows']['target']} others of them.\n"
        f"- Each training: {training['max_steps']} steps of {training['batch_size']} rows, {training['optimizer']}, "
        f"peak learning rate {training['learning_rate']}, whatever the number of rows; seeds "
        f"{', '.join(map(str, record['seeds']))} (selection, new adapter, order of rows, dropout).\n"
        "- Intervals: 95 %, Student's t over seeds. To random: difference at the same budget, paired by seed.\n"
        f"- {record['cpu_seconds'] / 60:.0f} CPU minutes (more if it was killed on the way); {machine['processor']}, "
        f"{machine['cores']} cores shared with other work, {machine['threads']} thread; {versions}."
    )


def _chosen(chosen: list[Record]) -> str:
    lines = [["", "seed", "rows", "of held-out families", "families", "mean answer, characters", "selection s"]]
    for one in chosen:
        name = one["method"] + (", in-domain" if one.get("in_domain") else "")
        seconds = f"{one['seconds']:.2f}" if "seconds" in one else ""
        lines.append([
            name, "" if one["seed"] is None else str(one["seed"]), f"{one['rows']:,}",
            f"{one['of_held_out_families']:.0%}", str(one["families"]), f"{one['answer_characters']:.0f}", seconds,
        ])  # fmt: skip
    return markdown_table(lines)


def _cost(record: Record) -> str:
    stages = record["stage_seconds"]
    whole = [one for found in record["comparison"]["metrics"].values() for one in found["methods"]]
    full = next(one["training_seconds"] for one in whole if one["method"] == "full")
    seen = record["training"]["max_steps"] * record["training"]["batch_size"]
    epoch = full * record["data"]["rows"]["pool"] / seen
    lines = [["stage", "seconds"], *([name, f"{value:,.0f}"] for name, value in _flat(stages))]
    lines.append([f"training on {seen} rows", f"{full:,.0f}"])
    lines.append(["training on the whole pool once, from that", f"{epoch:,.0f}"])
    return markdown_table(lines) + "\n\nWall time on a busy machine."


def _flat(stages: Record) -> list[tuple[str, float]]:
    return [(name, value) for name, value in stages.items() if isinstance(value, int | float)]
