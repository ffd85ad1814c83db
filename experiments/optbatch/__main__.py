"""`python -m experiments.optbatch`: the whole experiment in one command."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cyclopts import App

from experiments.optbatch.cells import Cell, trained, untrained
from experiments.optbatch.studies import STUDIES, Study
from experiments.optbatch.table import summary, write_table
from experiments.records import machine
from pursuit.files import sha256_file, write_json
from pursuit.progress import say
from pursuit.run_folder import versions

app = App(name="experiments.optbatch", help=__doc__)


@app.default
def main(
    *, out: Path = Path("runs/optbatch"), results: Path = Path("experiments/results"), seeds: int = 3,
    studies: Sequence[str] = tuple(STUDIES),
) -> None:  # fmt: skip
    """Train every arm for the same steps, then for the same CPU time; write optbatch-STUDY.json and .md.

    Seed after seed, and the results are written after each: a run that is stopped leaves a balanced table. What stands
    in `out` is not done again.

    Args:
        out: Folder for data and trainings.
        results: Folder for the small files that are kept.
        seeds: Trainings of each arm.
        studies: Which models.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    results.mkdir(parents=True, exist_ok=True)
    for count in range(1, seeds + 1):
        for name in studies:
            folder = out / name
            study = STUDIES[name](folder)
            record = {
                "study": name, "about": study.about, "machine": machine(), "versions": versions(),
                "pool_sha256": sha256_file(study.pool), "recipe": asdict(study.recipe),
                "lora": None if study.lora is None else asdict(study.lora), **_carry_out(study, folder, count),
            }  # fmt: skip
            write_json(results / f"optbatch-{name}.json", record)
            print(write_table(record, results / f"optbatch-{name}.md"))


def _carry_out(study: Study, folder: Path, seeds: int) -> dict[str, Any]:
    """Trainings of the first `seeds` seeds. The steps that equal CPU time allows are told by all seeds before the last.

    Each seed's own ratio would be as noisy as one training's clock; so the steps of a seed are those of the median over
    it and the seeds before it.
    """
    rows, heldout = study.rows(folder)
    cells = folder / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    steps = study.recipe.max_steps
    assert steps is not None
    equal_steps: list[Cell] = []
    equal_time: list[Cell] = []
    for seed in range(seeds):
        for arm in study.arms:
            say(f"{study.name}: {arm.label}, seed {seed}, {steps} steps")
            equal_steps.append(trained(study, rows, heldout, cells, arm, seed, steps))
        for arm in study.timed:
            allowed = affordable_steps(equal_steps, arm.label, steps)
            say(f"{study.name}: {arm.label}, seed {seed}, {allowed} steps in the time of {steps} on all")
            equal_time.append(trained(study, rows, heldout, cells, arm, seed, allowed))
    return {
        "seeds": list(range(seeds)), "pool_rows": len(rows), "heldout_rows": len(heldout), "steps": steps,
        "untrained": untrained(study, heldout, folder), "equal_steps": summary(equal_steps),
        "equal_time": summary(equal_time), "trainings": {"equal_steps": equal_steps, "equal_time": equal_time},
    }  # fmt: skip


def affordable_steps(cells: Sequence[Cell], arm: str, steps: int) -> int:
    """How many steps of an arm take the CPU time that `steps` on all take: the median over seeds."""
    seconds = {(cell["arm"], cell["seed"]): cell["cpu_seconds"] for cell in cells}
    ratios = [seconds["full", seed] / own for (name, seed), own in seconds.items() if name == arm]
    return max(1, round(steps * statistics.median(ratios)))


if __name__ == "__main__":
    app()
