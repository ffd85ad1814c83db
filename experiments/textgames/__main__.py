"""`python -m experiments.textgames`: the whole experiment in one command."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from cyclopts import App

from experiments.gradients import features_by
from experiments.records import comparison_facts, counted_seconds, machine
from experiments.textgames.data import FIRST_TRAINING, KINDS, TARGETS, Sizes, first_model, make_data
from experiments.textgames.facts import chosen_facts
from experiments.textgames.setting import RUN, TRAINING, games_run, held_out
from experiments.textgames.table import write_table
from pursuit import Run
from pursuit.compare import Comparison, compare
from pursuit.compare.plan import parse_method
from pursuit.files import read_json, sha256_file, write_json
from pursuit.progress import say
from pursuit.selectors import method
from pursuit.versions import versions

app = App(name="experiments.textgames", help=__doc__)
LESS_IN_TURN = f'less(quotas="{",".join(f"{kind}=1" for kind in TARGETS)}")'  # GTP's shares are equal too
TARGETED = ("gtp", "less", LESS_IN_TURN, "rds", "random")
IN_DOMAIN = ("gtp(in_domain=true)", "tagcos(clusters=20)", "kcenter", "random")
COMPARED: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "targeted": (TARGETED, ("0.5%", "5%"), TARGETS),
    "in-domain": (IN_DOMAIN, ("5%",), KINDS),
}
ABLATED, ABLATIONS = "no-momentum", (  # by these gradients; K = 20 and ridge 1 are compared with the other methods
    "tagcos(clusters=5)", "tagcos(clusters=100)", "tagcos(clusters=20,ridge=0.01)", "tagcos(clusters=20,ridge=10)",
)  # fmt: skip
BY_GRADIENTS: dict[str, tuple[str, ...]] = {  # what is compared by other gradients than the published ones
    "targeted": ("gtp", "less", LESS_IN_TURN, "random"), "in-domain": IN_DOMAIN,
}  # fmt: skip
CURVES = ("omp", "gtp(refine=none)")  # selected for their residuals only, not trained on


@app.default
def main(
    *, out: Path = Path("runs/textgames"), results: Path = Path("experiments/results"), seeds: int = 3,
    gradients: Sequence[str] = (),
) -> None:  # fmt: skip
    """Make the data, train the first model, select, train on every choice, score; write textgames.json and .md.

    Seed after seed, and the results are written after each: a run that is stopped leaves a balanced table. What stands
    in `out` is not done again.

    Args:
        out: Folder for data, models and trainings.
        results: Folder for the small files that are kept.
        seeds: Trainings of each choice.
        gradients: Select, train and score by other gradients too, named in experiments/gradients.py.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*rows follow the goal as closely.*")  # kept in the diagnostics
    sizes = Sizes()
    data = make_data(out / "data", sizes)
    model = first_model(data, out / "first", sizes.max_length)
    runs = {name: games_run(out, data, model, name) for name in ("", *gradients)}
    run = runs[""]
    for text in CURVES:
        _select_for_its_curve(run, text)
    counted = 0.0
    for count in range(1, seeds + 1):
        found = {name: _compared(run, name, count, data, out) for name in COMPARED}
        for other, name in product(gradients, BY_GRADIENTS):
            methods = BY_GRADIENTS[name]
            if (name, other) == ("in-domain", ABLATED):
                methods += ABLATIONS
            found[f"{name}, {other}"] = _compared(runs[other], name, count, data, out, methods)
        now = time.process_time()
        seconds, counted = counted_seconds(out / "cpu.json", now - counted), now
        record = _record(runs, found, count, data, seconds)
        results.mkdir(parents=True, exist_ok=True)
        write_json(results / "textgames.json", record)
        text = write_table(record, results / "textgames.md")
    print(text)


def _compared(run: Run, name: str, seeds: int, data: Path, out: Path, others: tuple[str, ...] = ()) -> dict[str, Any]:
    methods, budgets, kinds = COMPARED[name]
    methods = others or methods
    say(f"{name}, {seeds} seeds: {', '.join(methods)} at {', '.join(budgets)}")
    comparison = Comparison(
        methods=methods, budgets=budgets, seeds=seeds, train=TRAINING, metrics=("loss", "exact"),
        evaluation=held_out(data, kinds),
    )  # fmt: skip
    return comparison_facts(compare(run, comparison, out / name))


def _record(runs: dict[str, Run], found: dict[str, Any], seeds: int, data: Path, seconds: float) -> dict[str, Any]:
    run = runs[""]
    return {
        "machine": machine(), "versions": versions(), "seeds": list(range(seeds)),
        "cpu_seconds": seconds, "data": read_json(data / "about.json"),
        "pool_sha256": sha256_file(data / "pool.jsonl"), "kinds": list(KINDS), "targets": list(TARGETS),
        "first_training": asdict(FIRST_TRAINING), "training": asdict(TRAINING),
        "run": RUN | {"features": features_by("", RUN["features"])},
        "stage_seconds": read_json(run.folder.path / "timings.json"), "comparisons": found,
        "chosen": [fact for gradients, one in runs.items() for fact in chosen_facts(one, data, gradients)],
    }  # fmt: skip


def _select_for_its_curve(run: Run, text: str) -> None:
    name, parameters = parse_method(text)
    for in_domain in (False, True):
        run.select(method(name, **parameters, in_domain=in_domain), "5%", seed=0)


if __name__ == "__main__":
    app()
