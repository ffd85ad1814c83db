"""`python -m experiments.mixed`: the whole experiment in one command."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from cyclopts import App
from demo.fetch import fetch_model

from experiments.mixed.table import write_table
from experiments.pools.mixed import make_mixed
from experiments.records import comparison_facts, counted_seconds, machine
from pursuit import Run
from pursuit.compare import Comparison, compare
from pursuit.files import read_json, sha256_file, write_json
from pursuit.finetune import FineTune
from pursuit.progress import say
from pursuit.reporting import Choice
from pursuit.run_folder import versions
from pursuit.selectors import Selection

app = App(name="experiments.mixed", help=__doc__)
ROWS, EVAL_ROWS, TARGET_ROWS, CHARACTERS = 600, 10, 5, 140
FAMILIES = (
    "object_counting", "hyperbaton", "implicatures", "strategyqa", "social_support", "tense",
    "unit_conversion/unit_addition_same", "spell_backward", "anachronisms", "reasoning_about_colored_objects",
)  # fmt: skip
TRAINING = FineTune(
    max_steps=12, batch_size=8, learning_rate=1e-3, schedule="linear", warmup_ratio=0.1, micro_batch_tokens=512
)
# the last third of the layers: half of the time of all of them, as nothing below needs a gradient
LAYERS = [f"layers.{layer}.self_attn.{part}_proj" for layer in range(20, 30) for part in "qkvo"]
RUN: dict[str, Any] = {
    "chat_template": "chatml", "max_length": 256, "device": "cpu", "dtype": "float32",
    "lora": {"rank": 16, "alpha": 64, "targets": LAYERS},
    "warmup": {"checkpoint_steps": [6, 12], "epochs": 1, "sample": 96, "learning_rate": 1e-3, "batch_size": 8,
               "warmup_ratio": 0.1, "micro_batch_tokens": 512},
    "features": {"dimension": 8192, "dtype": "float32", "batch_tokens": 512, "shard_rows": 64},
}  # fmt: skip
FIRST = ("tagcos(clusters=10)", "gtp", "less", "gtp(in_domain=true)")
OTHERS = ("stratified", "kcenter", "craig", "omp(in_domain=true)", "longest", "perplexity", "gradnorm")


@app.default
def main(
    *, out: Path = Path("runs/mixed"), results: Path = Path("experiments/results"), seeds: int = 3
) -> None:
    """Make the data, take gradients, select, train on every choice, score; write mixed.json and mixed.md.

    Seed after seed, and the results are written after each: a run that is stopped leaves a balanced table. What stands
    in `out` is not done again.

    Args:
        out: Folder for data and trainings.
        results: Folder for the small files that are kept.
        seeds: Trainings of each choice.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    data = out / "data"
    if not (data / "about.json").exists():
        make_mixed(
            data, ROWS, eval_rows=EVAL_ROWS, target_rows=TARGET_ROWS, families=FAMILIES, max_characters=CHARACTERS
        )
    run = Run(
        out / "run", **RUN, model=str(fetch_model()), pool=str(data / "pool.jsonl"), target=str(data / "target.jsonl")
    )
    counted = 0.0
    for methods, count in product((FIRST, FIRST + OTHERS), range(1, seeds + 1)):
        say(f"{count} of {seeds} seeds: {', '.join(methods)}")
        comparison = Comparison(
            methods=methods, budgets=("5%",), seeds=count, train=TRAINING, evaluation=[str(data / "eval.jsonl")],
        )  # fmt: skip
        found = comparison_facts(compare(run, comparison, out / "compare"))
        now = time.process_time()
        record = {
            "machine": machine(), "versions": versions(), "seeds": list(range(count)),
            "cpu_seconds": counted_seconds(out / "cpu.json", now - counted), "data": read_json(data / "about.json"),
            "pool_sha256": sha256_file(data / "pool.jsonl"), "run": RUN, "training": asdict(TRAINING),
            "stage_seconds": read_json(run.folder.path / "timings.json"), "comparison": found, "chosen": _chosen(run),
        }  # fmt: skip
        counted = now
        results.mkdir(parents=True, exist_ok=True)
        write_json(results / "mixed.json", record)
        text = write_table(record, results / "mixed.md")
    print(text)


def _chosen(run: Run) -> list[dict[str, Any]]:
    """Of the pool and of every selection in the run: rows of the held-out families, of each collection, seconds."""
    pool = [json.loads(example.raw) for example in run.pool]
    facts = [{"method": "pool", "seed": None, "rows": len(pool), **_composition(pool)}]
    for folder in sorted(path.parent for path in run.folder.selections.glob("*/choice.json")):
        choice, selection = Choice.load(folder), Selection.load(folder)
        facts.append({
            "method": choice.method, "in_domain": bool(choice.parameters.get("in_domain")), "seed": choice.seed,
            "rows": len(selection), "seconds": round(choice.seconds, 3),
            **_composition([pool[index] for index in selection.indices]), "indices": selection.indices.tolist(),
        })  # fmt: skip
    return facts


def _composition(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "of_held_out_families": sum(row["source"] in FAMILIES for row in rows) / len(rows),
        "families": len({row["source"] for row in rows}),
        "collections": dict(sorted(Counter(row["collection"] for row in rows).items())),
        "answer_characters": sum(len(row["messages"][1]["content"]) for row in rows) / len(rows),
    }


if __name__ == "__main__":
    app()
