"""What a study is, and the text games' data, model and usual comparison, which most of them change in one thing.

All choices are by pursuit's own gradients (`default` in experiments/gradients.py), of the two experiments' pools, whose
folders have the data and the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.textgames.data import FIRST_TRAINING, KINDS, TARGETS, Sizes, first_model, make_data
from experiments.textgames.setting import TRAINING, games_run, held_out
from pursuit import Run
from pursuit.compare import Comparison
from pursuit.finetune import FineTune

TARGETED = ("gtp", "less", "rds", "random")
IN_DOMAIN = ("gtp(in_domain=true)", "tagcos(clusters=20)", "random")
Changes = dict[str, dict[str, Any]]
GOALS = {"targeted": (TARGETED, TARGETS), "in-domain": (IN_DOMAIN, KINDS)}


@dataclass(frozen=True)
class Folders:
    """Of the other experiments, whose data and gradients are used; made there where they are missing."""

    textgames: Path
    mixed: Path


@dataclass(frozen=True)
class Study:
    """What is compared with what.

    Attributes:
        about: the question, in words.
        goals: title → label → the run that selects, and the comparison; the labels are the columns of a table.
        aimed: families of a mixed pool whose shares of each choice are shown.
        curves: the method whose residuals by iteration are shown, of the first seed.
        overlaps: methods of which the choices of all columns are compared with each other, of the first seed.
    """

    about: str
    goals: Mapping[str, Mapping[str, tuple[Run, Comparison]]] = field(default_factory=dict)
    aimed: tuple[str, ...] = ()
    curves: str = ""
    overlaps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Games:
    """The text-game experiment's data and first model."""

    out: Path
    data: Path
    model: Path

    @classmethod
    def made(
        cls, out: Path, sizes: Sizes | None = None, recipe: FineTune = FIRST_TRAINING,
        words: Sequence[str] = ("first.jsonl",),
    ) -> Games:  # fmt: skip
        """Skipped where they stand. `recipe`, `words`: as for `first_model`."""
        sizes = sizes or Sizes()
        data = make_data(out / "data", sizes)
        return cls(out, data, first_model(data, out / "first", sizes.max_length, recipe, words))

    def run(self, gradients: str = "default", **changed: Any) -> Run:
        """Features by these gradients."""
        return games_run(self.out, self.data, self.model, gradients, **changed)

    def comparison(self, goal: str, **changed: Any) -> Comparison:
        """As in that experiment at 5 %, but for what is named."""
        methods, kinds = GOALS[goal]
        usual: dict[str, Any] = {
            "methods": methods, "budgets": ("5%",), "train": TRAINING, "metrics": ("loss", "exact"),
            "evaluation": held_out(self.data, kinds),
        }  # fmt: skip
        return Comparison(**usual | changed)

    def changed(self, goal: str, changes: Changes) -> dict[str, tuple[Run, Comparison]]:
        """The same choices, compared in each of these ways."""
        return {label: (self.run(), self.comparison(goal, **changed)) for label, changed in changes.items()}


def cells(study: Study) -> Iterator[tuple[str, str, Run, Comparison]]:
    """Goal, label, run, comparison."""
    for goal, columns in study.goals.items():
        for label, (run, comparison) in columns.items():
            yield goal, label, run, comparison
