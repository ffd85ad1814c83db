"""The results as one short page of Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments.gradients import EXPLAINED
from experiments.plots import score_chart
from experiments.records import Record, gradients_table, markdown_table, score_table
from pursuit.files import write_text

EXPECTED, FOUND = Path(__file__).parent / "expected.md", Path(__file__).parent / "found.md"
TITLES = {"main": "Scores; gradients as published", "all": "Scores of all methods; gradients as published"}


def write_table(record: Record, path: Path) -> str:
    """Write the page, and its chart beside it; the text of the page."""
    parts = ["# The mixed pool, in small", _about(record), "## Expected", EXPECTED.read_text(encoding="utf-8").strip()]
    if FOUND.exists():
        parts += ["## Found", FOUND.read_text(encoding="utf-8").strip()]
    for name, title in TITLES.items():
        if name in record:
            parts += [
                f"## {title}",
                *_scores(record[name], path.with_name(f"{path.stem}-{name}.svg")),
            ]
    kinds = {name.partition(", ")[2] or "as published": record[name] for name in record if name.startswith("main")}
    parts += ["## By gradients", gradients_table("loss", kinds)]
    parts += ["## What was chosen", _chosen(record["chosen"]), "## Cost", _cost(record)]
    text = "\n\n".join(parts) + "\n"
    write_text(path, text)
    return text


def _scores(comparison: Record, chart: Path) -> Iterator[str]:
    seeds = sorted({one["seed"] for one in comparison["trainings"]})
    yield (
        f"Held out: {comparison['evaluation']}. Loss in nats a token, lower is better. Seeds "
        f"{', '.join(map(str, seeds))} (selection, new adapter, order of rows, dropout)."
    )
    for metric, found in comparison["metrics"].items():
        score_chart(metric, found, chart)
        yield score_table(metric, found)
        yield f"![{metric} by method]({chart.name})"
    yield from (f"Failed: {name}: {why}" for name, why in comparison["failed"])


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
        f"peak learning rate {training['learning_rate']}, whatever the number of rows.\n"
        "- Intervals: 95 %, Student's t over seeds. To random: difference at the same budget, paired by seed.\n"
        f"{EXPLAINED}\n"
        f"- {record['cpu_seconds'] / 60:.0f} CPU minutes (more if it was killed on the way); {machine['processor']}, "
        f"{machine['cores']} cores shared with other work, {machine['threads']} thread; {versions}."
    )


def _chosen(chosen: list[Record]) -> str:
    lines = [["", "seed", "rows", "of held-out families", "families", "mean answer, characters", "selection s"]]
    for one in chosen:
        if one["method"] == "random" and one.get("gradients"):
            continue  # the same rows whatever the gradients
        name = one["method"] + (", in-domain" if one.get("in_domain") else "")
        name += f", {one['gradients']}" if one.get("gradients") else ""
        seconds = f"{one['seconds']:.2f}" if "seconds" in one else ""
        lines.append([
            name, "" if one["seed"] is None else str(one["seed"]), f"{one['rows']:,}",
            f"{one['of_held_out_families']:.0%}", str(one["families"]), f"{one['answer_characters']:.0f}", seconds,
        ])  # fmt: skip
    return markdown_table(lines)


def _cost(record: Record) -> str:
    paid = record.get("paid")
    if paid is None:
        return "Not measured (`--long`)."
    total = sum(paid["rows"].values())
    lines = [["rows passed forward and backward", ""], *([name, f"{rows:,}"] for name, rows in paid["rows"].items())]
    lines.append(["together", f"{total:,}"])
    (scores,) = paid["comparison"]["metrics"].values()
    loss = scores["methods"][0]["score"][0]
    epochs = total / record["data"]["rows"]["pool"]
    return (
        markdown_table(lines) + f"\n\nTraining on all rows for as long ({paid['steps']} steps, {epochs:.1f} epochs of "
        f"the pool; one seed) ends at a held-out loss of **{loss:.3f}**."
    )
