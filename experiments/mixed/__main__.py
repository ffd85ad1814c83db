"""`python -m experiments.mixed`: the whole experiment in one command."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from experiments.composition import composition
from experiments.gradients import features_by
from experiments.mixed.setting import FAMILIES, OTHERS, RUN, TRAINING, mixed_data, mixed_run
from experiments.mixed.table import write_table
from experiments.records import comparison_facts, counted_seconds, machine
from pursuit import Run
from pursuit.compare import Comparison, compare
from pursuit.files import read_json, sha256_file, write_json
from pursuit.progress import say
from pursuit.run.reporting import Choice
from pursuit.selectors import Selection
from pursuit.versions import versions

app = App(name="experiments.mixed", help=__doc__)
TARGETED = ("gtp", "less")
MAIN = ("tagcos(clusters=10)", "gtp", "less", "gtp(in_domain=true)")
ONLY_TARGET = ("no-momentum-both",)  # what differs in the target's rows alone


@app.default
def main(
    *, out: Path = Path("runs/mixed"), results: Path = Path("experiments/results"), seeds: int = 3,
    long: Annotated[bool, Parameter(negative="")] = False, gradients: Sequence[str] = (),
) -> None:  # fmt: skip
    """Make the data, take gradients, select, train on every choice, score; write mixed.json and mixed.md.

    Seed after seed, and the results are written after each: a run that is stopped leaves balanced tables. What stands
    in `out` is not done again.

    Args:
        out: Folder for data and trainings.
        results: Folder for the small files that are kept.
        seeds: Trainings of each choice.
        long: Train on all rows once more, for as long as selecting and training on the choice take together.
        gradients: Select, train and score by other gradients too, named in experiments/gradients.py.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    data = mixed_data(out)
    runs: dict[str, Run] = {}
    found: dict[str, Any] = {}
    counted = 0.0
    wanted = [("main", "", MAIN), *((f"main, {kind}", kind, _methods(kind)) for kind in gradients)]
    wanted.append(("all", "", MAIN + OTHERS))  # one after the other: a run that is stopped has the first ones whole
    for (name, kind, methods), count in product(wanted, range(1, seeds + 1)):
        say(f"{name}, {count} of {seeds} seeds: {', '.join(methods)}")
        if kind not in runs:
            runs[kind] = mixed_run(out, data, kind)
        source = runs[kind]
        found[name] = _compared(source, data, out, methods=methods, budgets=("5%",), seeds=count, train=TRAINING)
        if long and name == "main" and count == seeds:
            found["paid"] = _paid(source, data, out)
        now = time.process_time()
        seconds, counted = counted_seconds(out / "cpu.json", now - counted), now
        print(_publish(runs, data, found, seconds, results))


def _methods(gradients: str) -> tuple[str, ...]:
    return TARGETED if gradients in ONLY_TARGET else MAIN


def _publish(runs: dict[str, Run], data: Path, found: dict[str, Any], seconds: float, results: Path) -> str:
    record = {
        "machine": machine(), "versions": versions(), "cpu_seconds": seconds, "data": read_json(data / "about.json"),
        "pool_sha256": sha256_file(data / "pool.jsonl"),
        "run": RUN | {"features": features_by("", RUN["features"])}, "training": asdict(TRAINING), **found,
        "chosen": [{**fact, "gradients": name} for name, run in runs.items() for fact in _chosen(run, name == "")],
    }  # fmt: skip
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / "mixed.json", record)
    return write_table(record, results / "mixed.md")


def _compared(run: Run, data: Path, out: Path, **settings: Any) -> dict[str, Any]:
    comparison = Comparison(evaluation=[str(data / "eval.jsonl")], **settings)
    return comparison_facts(compare(run, comparison, out / "compare"))


def _paid(run: Run, data: Path, out: Path) -> dict[str, Any]:
    """Training on all rows, once, for as many rows as selecting by gradients and training on the choice see."""
    rows = read_json(data / "about.json")["rows"]
    warmup = RUN["warmup"]
    seen = {
        "warm-up": warmup["sample"], "gradients of the pool": rows["pool"] * len(warmup["checkpoint_steps"]),
        "gradients of the target": rows["target"] * len(warmup["checkpoint_steps"]),
        "training on the choice": (TRAINING.max_steps or 0) * TRAINING.batch_size,
    }  # fmt: skip
    steps = sum(seen.values()) // TRAINING.batch_size
    found = _compared(
        run, data, out, methods=("random",), budgets=("100%",), seeds=1, full=False,
        train=replace(TRAINING, max_steps=steps),
    )  # fmt: skip
    return {"rows": seen, "steps": steps, "comparison": found}


def _chosen(run: Run, pool_too: bool) -> list[dict[str, Any]]:
    """Of the pool and of every selection in the run: rows of the held-out families, of each collection, seconds."""
    pool = [json.loads(example.raw) for example in run.pool]
    facts = [{"method": "pool", "seed": None, **composition(pool, FAMILIES)}] if pool_too else []
    for folder in sorted(path.parent for path in run.folder.selections.glob("*/choice.json")):
        choice, selection = Choice.load(folder), Selection.load(folder)
        facts.append({
            "method": choice.method, "in_domain": bool(choice.parameters.get("in_domain")), "seed": choice.seed,
            "seconds": round(choice.seconds, 3),
            **composition([pool[index] for index in selection.indices], FAMILIES),
            "indices": selection.indices.tolist(),
        })  # fmt: skip
    return facts


if __name__ == "__main__":
    app()
