"""`python -m experiments.optbatch`: the whole experiment in one command."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from cyclopts import App

from experiments.optbatch.cells import Cell, trained, untrained
from experiments.optbatch.studies import STUDIES, Arm, Study
from experiments.optbatch.table import summary, write_table
from experiments.records import machine
from pursuit.files import sha256_file, write_json
from pursuit.progress import say
from pursuit.versions import versions

NEAR_FULL = (0.2,)  # near full's cost at the same steps: a training more would tell little
app = App(name="experiments.optbatch", help=__doc__)


@app.default
def main(
    *, out: Path = Path("runs/optbatch"), results: Path = Path("experiments/results"), seeds: int = 3,
    studies: Sequence[str] = tuple(STUDIES),
) -> None:  # fmt: skip
    """Train every arm for the same steps, then for the same number of operations; write optbatch-STUDY.json and .md.

    One rate after the other, and the results are written after each of its seeds: a run that is stopped leaves a table
    of what it did. What stands in `out` is not done again.

    Args:
        out: Folder for data and trainings.
        results: Folder for the small files that are kept.
        seeds: Trainings of each arm.
        studies: Which models.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    results.mkdir(parents=True, exist_ok=True)
    for name in studies:
        study = STUDIES[name](out / name)
        about = {
            "study": name, "about": study.about, "machine": machine(), "versions": versions(),
            "pool_sha256": sha256_file(study.pool), "recipe": asdict(study.recipe),
            "lora": None if study.lora is None else asdict(study.lora),
        }  # fmt: skip
        text = ""
        for found in _rounds(study, out / name, seeds):
            write_json(results / f"optbatch-{name}.json", {**about, **found})
            text = write_table({**about, **found}, results / f"optbatch-{name}.md")
        print(text)


def _rounds(study: Study, folder: Path, seeds: int) -> Iterator[dict[str, Any]]:
    """All that is known after each round: some selectors at one rate with one seed, and training on all with it.

    Cost is made equal by counted operations: processor time was seen to change by a quarter with what others did.
    """
    rows, heldout = study.rows(folder)
    cells = folder / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    steps = study.recipe.max_steps
    assert steps is not None
    before = untrained(study, heldout, folder)
    same_steps: dict[tuple[str, int], Cell] = {}
    same_cost: dict[tuple[str, int], Cell] = {}

    def found() -> dict[str, Any]:
        trainings = {"equal_steps": list(same_steps.values()), "equal_flops": list(same_cost.values())}
        return {
            "seeds": sorted({seed for _, seed in same_steps}), "pool_rows": len(rows), "heldout_rows": len(heldout),
            "steps": steps, "untrained": before, **{name: summary(made) for name, made in trainings.items()},
            "trainings": trainings,
        }  # fmt: skip

    for rate, names, seed in product(study.rates, filter(None, (study.costed, study.others)), range(seeds)):
        for arm in (Arm("full"), *(Arm(name, rate) for name in names)):
            say(f"{study.name}: {arm.label}, seed {seed}, {steps} steps")
            same_steps[arm.label, seed] = trained(study, rows, heldout, cells, arm, seed, steps)
        same_cost["full", seed] = same_steps["full", seed]
        yield found()
        for arm in (Arm(name, rate) for name in names if name in study.costed and rate not in NEAR_FULL):
            allowed = affordable_steps(list(same_steps.values()), arm.label, steps)
            say(f"{study.name}: {arm.label}, seed {seed}, {allowed} steps for the operations of {steps} on all")
            same_cost[arm.label, seed] = trained(study, rows, heldout, cells, arm, seed, allowed)
            yield found()


def affordable_steps(cells: Sequence[Cell], arm: str, steps: int) -> int:
    """How many steps of an arm take the operations that `steps` on all take: the median over the seeds so far."""
    flops = {(cell["arm"], cell["seed"]): cell["flops"] for cell in cells}
    ratios = [flops["full", seed] / own for (name, seed), own in flops.items() if name == arm]
    return max(1, round(steps * statistics.median(ratios)))


if __name__ == "__main__":
    app()
