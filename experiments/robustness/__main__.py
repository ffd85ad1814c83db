"""`python -m experiments.robustness`: does a choice hold for another score, model, optimizer, schedule or warm-up?"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cyclopts import App

from experiments.composition import compared_choices, shared_rows
from experiments.records import comparison_facts, counted_seconds, machine
from experiments.robustness.studies import STUDIES
from experiments.robustness.study import Folders, cells
from experiments.robustness.table import write_table
from experiments.side_by_side import SideBySide, choose_ahead
from pursuit.compare import compare
from pursuit.compare.choices import choices
from pursuit.engine import LOCAL
from pursuit.files import write_json
from pursuit.progress import say
from pursuit.versions import versions

app = App(name="experiments.robustness", help=__doc__)


@app.default
def main(
    *, out: Path = Path("runs/robustness"), textgames: Path = Path("runs/textgames"), mixed: Path = Path("runs/mixed"),
    results: Path = Path("experiments/results"), seeds: int = 3, studies: Sequence[str] = tuple(STUDIES),
    workers: int = 1,
) -> None:  # fmt: skip
    """Select, change one thing, train on every choice, score; write robustness-STUDY.json and .md.

    Seed after seed, and the results are written after each. What stands in `out` is not done again.

    Args:
        out: Folder for trainings.
        textgames: Folder of `experiments.textgames`, for its data, first model and gradients; made if it is not there.
        mixed: Folder of `experiments.mixed`, likewise.
        results: Folder for the small files that are kept.
        seeds: Trainings of each choice.
        studies: What is changed.
        workers: Processes that choose and train side by side, on one GPU.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", message=".*rows follow the goal as closely.*")  # kept in the diagnostics
    results.mkdir(parents=True, exist_ok=True)
    engine = SideBySide(workers) if workers > 1 else LOCAL
    counted = 0.0
    for name in studies:
        study = STUDIES[name](Folders(textgames, mixed))
        text = ""
        for count in range(1, seeds + 1):
            goals: dict[str, dict[str, Any]] = {}
            for goal, label, run, comparison in cells(study):
                say(f"{name}, {count} of {seeds} seeds: {goal}, {label}")
                comparison = replace(comparison, seeds=count)
                if isinstance(engine, SideBySide):
                    choose_ahead(engine, run, comparison, out / name)
                compared = compare(run, comparison, out / name, engine=engine)
                goals.setdefault(goal, {})[label] = comparison_facts(compared)
            now = time.process_time()
            seconds, counted = counted_seconds(out / name / "cpu.json", now - counted), now
            record = {
                "study": name, "about": study.about, "machine": machine(), "versions": versions(),
                "seeds": list(range(count)), "cpu_seconds": seconds, "goals": goals,
            }  # fmt: skip
            _, _, run, comparison = next(cells(study))
            made = choices(run, replace(comparison, seeds=count), out / name) if study.curves or study.aimed else {}
            if study.curves:
                record["residuals"] = made[study.curves, "5%", 0][0].diagnostics["residuals"]
            if study.aimed:
                record["chosen"] = compared_choices(run, made, study.aimed)
            if study.overlaps:
                lists = {label: choices(run, comparison, out / name) for _, label, run, comparison in cells(study)}
                record["overlaps"] = {method: shared_rows(lists, method) for method in study.overlaps}
            write_json(results / f"robustness-{name}.json", record)
            text = write_table(record, results / f"robustness-{name}.md")
        print(text)
    engine.close()


if __name__ == "__main__":
    app()
