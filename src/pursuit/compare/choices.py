"""What every method chooses, kept in the comparison's folder: a comparison that goes on does not choose again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pursuit.compare.plan import Comparison, cell_folder, parse_method
from pursuit.errors import StoreError
from pursuit.files import fingerprint, read_json, write_record
from pursuit.progress import progress
from pursuit.run.run import Run
from pursuit.selectors import Selection, method
from pursuit.settings import FREE
from pursuit.versions import versions

MADE = "made.json"  # written last: it makes the selection beside it valid
Choices = Mapping[tuple[str, str | int | float | None, int], tuple[Selection, float | None]]


def choices(run: Run, comparison: Comparison, out: Path) -> Choices:
    """Every selection by (method, budget, seed), with the seconds that it cost when it was made.

    One that stands in `out` is taken from there if the rows, the target, the model, the settings that shape the
    gradients, and pursuit's version are those that it was made with.
    """
    wanted = [
        (text, budget, seed)
        for text in comparison.all_methods()
        for budget in comparison.budgets
        for seed in range(comparison.seeds)
    ]
    basis = _basis(run)
    made: dict[tuple[str, str | int | float | None, int], tuple[Selection, float | None]] = {}
    with progress("selections", len(wanted), "selections") as advance:
        for text, budget, seed in wanted:
            name = f"{text}-{budget}-seed{seed}"
            made[text, budget, seed] = _choice(
                run, text, budget, seed, cell_folder(out / "selections", name, fingerprint([name, basis]))
            )
            advance(1)
    return made


def _choice(run: Run, text: str, budget: str | int | float, seed: int, folder: Path) -> tuple[Selection, float | None]:
    if (folder / MADE).exists():
        with suppress(StoreError):  # one that is damaged is made again
            return Selection.load(folder), read_json(folder / MADE)["selection_seconds"]
    name, parameters = parse_method(text)
    selection, seconds = run.choose(method(name, **parameters), budget, seed=seed)
    selection.save(folder)
    write_record(folder / MADE, {"method": text, "budget": budget, "seed": seed, "selection_seconds": seconds})
    return selection, seconds


def _basis(run: Run) -> list[Any]:
    """All that a selection depends on beside its method, budget and seed."""
    target = run.stages.encode_target()[0].manifest if run.settings.target else None
    shaping = {key: value for key, value in run.settings.model_dump(mode="json").items() if key not in FREE}
    for place in ("model", "pool", "target"):  # known by what is in them
        shaping.pop(place, None)
    return [run.stages.tokens.manifests(), target, run.stages.given.model_digest, shaping, versions()["pursuit"]]
