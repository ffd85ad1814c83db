"""From a selection to what is written about it, when it is made and whenever its report is wanted again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pursuit.encoding import duplicate_groups, render_tokens
from pursuit.errors import SettingsError, StoreError
from pursuit.export.subset import CHOSEN, REPORT, Result, beside, chosen_table, publish
from pursuit.files import fingerprint, read_json, refuse_overwriting, refuse_unwritable, write_record
from pursuit.overview import report_data
from pursuit.overview.agreement import agreement as agreement_of
from pursuit.report import AgreementData, write_report
from pursuit.run.narrowing import kept_rows, narrowed
from pursuit.run.stages import Stages
from pursuit.run.tokens import Rows
from pursuit.selectors import METHODS, PRESETS, Selection, Selector, method
from pursuit.store.features import Features
from pursuit.warmup.plan import Plan

CHOICE = "choice.json"


@dataclass(frozen=True)
class Choice:
    """How a selection came about, so that it can be made and reported again.

    Attributes:
        seconds: that the method itself took.
        target: files of the target, whether or not the method looked at them.
        subset: where the chosen rows were written.
    """

    method: str
    parameters: dict[str, Any]
    budget: int
    seed: int
    drop_sources: list[str]
    drop_leaks: bool
    seconds: float
    target: list[str]
    subset: str = ""

    def name(self, selection: Selection) -> str:
        """Of its folder in the run's `selections/`: the same choice again is the same folder."""
        shaping = {key: value for key, value in asdict(self).items() if key not in ("seconds", "subset")}
        return f"{self.method}-{len(selection)}-{fingerprint([shaping, selection.indices.tolist()])[:8]}"

    @classmethod
    def load(cls, folder: Path) -> Choice:
        """Read what `publish_choice` left beside a selection."""
        try:
            return cls(**read_json(folder / CHOICE))
        except TypeError as error:
            raise StoreError(f"{folder / CHOICE}: is not what was written there ({error}). Select again.") from error


@dataclass(frozen=True)
class Chosen:
    """A selection with what it was made from.

    Attributes:
        target: features of the target's rows, where the method looked at them.
        keep: (N,) bool, the rows that were not left out beforehand.
        notes: what there was to say about those.
    """

    choice: Choice
    selection: Selection
    features: Features
    target: Features | None
    keep: np.ndarray
    notes: list[str]


def publish_choice(stages: Stages, selector: Selector, made: Chosen, out: Path | None) -> Result:
    """Keep a selection in the run, and write subset, table and report."""
    choice, selection = made.choice, made.selection
    folder = stages.folder.selections / choice.name(selection)
    subset = out or folder / "subset.jsonl"
    selection.save(folder)
    result = publish(
        selection, made.features, stages.pool, subset,
        **_about(stages, choice, selector, selection, made.target, made.keep, made.notes),
    )  # fmt: skip
    write_record(folder / CHOICE, {**asdict(choice), "subset": str(subset.absolute())})
    return result


def report_again(
    stages: Stages, folder: Path, *, agreement: bool = False, price_per_hour: float | None = None, currency: str = "",
    out: Path | None = None,
) -> Path:  # fmt: skip
    """Write the report of a selection anew.

    Args:
        stages: of the run, with the selection's target.
        folder: of the selection.
        agreement: also run the method again with another seed, on single checkpoints and on halves of the projection,
            and show how much of the choice stays.
        price_per_hour: of the machine, in `currency`: then the page shows money beside time.
        out: the page; without, beside the subset, or in the selection's folder if another subset stands there now.

    Raises:
        SettingsError: the page is not named .html, or would overwrite what the run reads; or the method is not one of
            the package's.
    """
    if out is not None:
        if out.suffix != ".html":
            raise SettingsError(f"{out}: the page is HTML; name the file so.")
        refuse_overwriting([out], stages.inputs())
        refuse_unwritable([out])
    choice, selection = Choice.load(folder), Selection.load(folder)
    subset = Path(choice.subset)
    if choice.method not in {**METHODS, **PRESETS}:
        raise SettingsError(
            f"{folder.name} was chosen by the selector {choice.method!r}, which this process does not know. Where its "
            "class is at hand, run.select(…) in Python with the same settings makes the page again."
        )
    selector = method(choice.method, **choice.parameters)
    with stages.folder.locked():
        encoded = stages.encode()
        features, target = stages.features_for(selector)
        keep, notes = _kept(stages, encoded, choice)
        # rows that were appended since are not what it was chosen from
        keep = keep & (np.arange(len(keep)) < selection.num_rows)
        data = report_data(
            selection if selection.num_rows == len(encoded) else _of_more_rows(selection, len(encoded)), features,
            chosen_table(selection, features), price_per_hour=price_per_hour, currency=currency,
            agreement=_agreement(choice, selector, selection, features, target, keep) if agreement else None,
            **_about(stages, choice, selector, selection, target, keep, notes),
        )  # fmt: skip
    page = out or (beside(subset, REPORT) if _is_of(subset, selection) else folder / REPORT)
    write_report(data, page)
    return page


def _is_of(subset: Path, selection: Selection) -> bool:
    """Whether the rows beside which the page would be written are still those of the selection."""
    table = beside(subset, CHOSEN)
    if not table.exists():
        return True
    return pq.read_table(table, columns=["index"])["index"].to_pylist() == selection.indices.tolist()


def _kept(stages: Stages, encoded: Rows, choice: Choice) -> tuple[np.ndarray, list[str]]:
    target_rows = stages.encode_target()[0].rows if stages.settings.target else None
    return kept_rows(encoded.rows, target_rows, drop_sources=choice.drop_sources, drop_leaks=choice.drop_leaks)


def _of_more_rows(selection: Selection, rows: int) -> Selection:
    return Selection(
        selection.indices, selection.weights, selection.method, rows, selection.parameters, selection.columns,
        selection.diagnostics,
    )  # fmt: skip


def _agreement(
    choice: Choice, selector: Selector, selection: Selection, features: Features, target: Features | None,
    keep: np.ndarray,
) -> AgreementData:  # fmt: skip
    numbers = np.full(len(keep), -1)
    numbers[keep] = np.arange(int(keep.sum()))
    within = Selection(numbers[selection.indices], selection.weights, selection.method, int(keep.sum()))
    return agreement_of(selector, narrowed(features, keep), target, choice.budget, choice.seed, within)


def _about(
    stages: Stages, choice: Choice, selector: Selector, selection: Selection, target: Features | None, keep: np.ndarray,
    notes: list[str],
) -> dict[str, Any]:  # fmt: skip
    """What the report shows besides the selection itself."""
    encoded, seconds = stages.encode(), stages.timings()
    job = {key: value for key, value in asdict(choice).items() if key not in ("seconds", "subset")}
    return {
        "settings": {"selection": job, **stages.settings.model_dump(mode="json")}, "model": stages.given.model_name,
        "render": lambda index: render_tokens(stages.given.tokenizer, *encoded[index]),
        "target": target, "render_target": _render_target(stages) if target is not None else None,
        "keep": None if keep.all() else keep,
        "timings": [
            *((stage, took, "") for stage, took in seconds.items() if not stage.startswith("select ")),
            (f"select {choice.method}", choice.seconds, ""),
        ],
        "cost": cost_of(stages, seconds, selector, selection, choice.seconds),
        "refused_total": len(encoded.refused),
        "refused": [(r.path, r.line or 0, r.reason) for r in encoded.refused[:500]],
        "duplicates_in_pool": sum(len(group) - 1 for group in duplicate_groups(encoded.rows)), "warnings": notes,
    }  # fmt: skip


def _render_target(stages: Stages) -> Any:
    rows = stages.encode_target()[0]
    return lambda index: render_tokens(stages.given.tokenizer, *rows[index])


def cost_of(
    stages: Stages, seconds: Mapping[str, float], selector: Selector, selection: Selection, own_seconds: float
) -> dict[str, float | None]:
    """Seconds of the stages that the method needs, and of training for the warm-up's epochs at its pace."""
    settings, encoded, first = stages.settings, stages.encode(), stages.tokens.parts()[0]
    needed = ["encode"]
    wanted = selector.needs_target or (selector.uses_target and settings.target)
    if selector.needs_embeddings:
        needed += ["embeddings", *(["target embeddings"] if wanted else [])]
    elif selector.needs_features:
        needed += ["warm-up", "directions", "features", *(["target"] if wanted else [])]
    cost: dict[str, float | None] = {
        "selection_seconds": own_seconds + sum(seconds.get(stage, 0.0) for stage in needed)
    }
    if "warm-up" not in seconds:
        return cost
    recipe = settings.warmup_recipe()
    plan = Plan(recipe, len(first))
    trained = sum(int(first.lengths[plan.batch(step)].sum()) for step in range(plan.last_step))
    pace = seconds["warm-up"] / trained * recipe.epochs
    cost["full_training_seconds"] = pace * int(encoded.lengths.sum())
    cost["subset_training_seconds"] = pace * int(encoded.lengths[selection.indices].sum())
    return cost
