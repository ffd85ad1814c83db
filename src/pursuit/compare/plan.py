"""What is compared: settings, and the cells (method, budget, seed, way of training) that they come to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pursuit.errors import SettingsError
from pursuit.finetune.recipe import FineTune

RANDOM, FULL, UNTRAINED = "random", "full", "untrained"
LONGEST_NAME = 120  # of a folder; systems allow 255, and a method's parameters may be many
OUTSIDE_QUOTES = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')  # commas that separate parameters


@dataclass(frozen=True)
class Comparison:
    """Settings of a comparison.

    Attributes:
        methods: names with parameters in brackets where they differ from the defaults: "tagcos",
            "tagcos(clusters=50, ridge=0.1)". `random` joins them always: it is what the others are compared with.
        budgets: shares ("5%", 0.05) or numbers of rows.
        evaluation: files of held-out rows, `name=path` names a family.
        seeds: trainings of each; the seed is that of the selection, of the new adapter, of the order and of dropout.
        metrics: of loss, exact, choice; scorers, players: "package.module:function", see `pursuit.evaluate`.
        train: how a model is trained on each subset; its seed is not used.
        equal: "steps" trains every subset for the same number of optimizer steps, "epochs" goes over each equally
            often. Without `train.max_steps` the steps are those of `train.epochs` over the largest subset [ours].
        optimizers, schedules: train in each of these ways, instead of the one of `train`.
        full: also train on the whole pool.
        train_model: another model to train on the subsets; the run's without.
        train_template: chat template of that model, where its own is not wanted or it has none.
        all_weights: train all weights instead of the run's LoRA.
        keep_models: keep the trained weights of every cell.

    Raises:
        SettingsError: nothing to compare, or a value that cannot be.
    """

    methods: Sequence[str]
    budgets: Sequence[str | int | float]
    evaluation: Sequence[str | Path]
    seeds: int = 3
    metrics: Sequence[str] = ("loss",)
    scorers: Sequence[str] = ()
    players: Sequence[str] = ()
    train: FineTune = field(default_factory=FineTune)
    equal: Literal["steps", "epochs"] = "steps"
    optimizers: Sequence[str] = ()
    schedules: Sequence[str] = ()
    full: bool = True
    train_model: str | None = None
    train_template: str | None = None
    all_weights: bool = False
    keep_models: bool = False

    def __post_init__(self) -> None:
        for name in ("methods", "budgets", "evaluation"):
            if not getattr(self, name):
                raise SettingsError(f"{name}: name at least one.")
        if self.train_template is not None and self.train_model is None:
            raise SettingsError("train_template is of another train_model, and there is none; the run has its own.")
        if self.seeds < 1:
            raise SettingsError(f"seeds = {self.seeds}: must be at least 1.")
        if self.equal not in ("steps", "epochs"):
            raise SettingsError(f"equal = {self.equal!r}: must be steps or epochs.")
        if not (self.metrics or self.scorers or self.players):
            raise SettingsError("metrics: name at least one of loss, exact, choice, or a scorer or player.")
        if reserved := {FULL, UNTRAINED} & {parse_method(method)[0] for method in self.methods}:
            raise SettingsError(f"{', '.join(sorted(reserved))}: not a method; the whole pool is trained on anyway.")

    def all_methods(self) -> list[str]:
        """The methods, each once, and random."""
        return list(dict.fromkeys([*self.methods, RANDOM]))

    def ways(self) -> list[FineTune]:
        """The trainings' settings, one for each optimizer and schedule; the seed is still to be set."""
        return [
            replace(self.train, optimizer=optimizer, schedule=schedule)
            for optimizer in self.optimizers or [self.train.optimizer]
            for schedule in self.schedules or [self.train.schedule]
        ]


@dataclass(frozen=True)
class Cell:
    """One training and its scores.

    Attributes:
        method: as named in the comparison, or full, or untrained.
        budget: as named; None for full and untrained.
        way: settings of the training; None for untrained.
    """

    method: str
    budget: str | int | float | None
    seed: int
    way: FineTune | None

    @property
    def name(self) -> str:
        """For people and for folders."""
        parts = [self.method, *([] if self.budget is None else [str(self.budget)])]
        return "-".join([*parts, *([] if self.way is None else [f"seed{self.seed}"])])


def cell_folder(folder: Path, name: str, key: str) -> Path:
    """Where something of that name is kept; another `key` (of all that shapes it) is another place."""
    safe = "".join(letter if letter.isalnum() or letter in "-_.%" else "_" for letter in name)
    return folder / f"{safe[:LONGEST_NAME]}-{key[:8]}"


def cells(comparison: Comparison) -> list[Cell]:
    """All that has to be done: first what everything is measured by, then seed after seed."""
    ways = comparison.ways()
    seeded = [
        Cell(method, budget, seed, way)
        for seed in range(comparison.seeds)
        for budget in comparison.budgets
        for method in comparison.all_methods()
        for way in ways
    ]
    whole = [Cell(FULL, None, seed, way) for seed in range(comparison.seeds) for way in ways]
    return [Cell(UNTRAINED, None, 0, None), *(whole if comparison.full else []), *seeded]


def parse_method(text: str) -> tuple[str, dict[str, str]]:
    """ "tagcos(clusters=50)" → ("tagcos", {"clusters": "50"}); the method itself checks its parameters.

    A value with commas stands in quotes: 'less(quotas="exam=2,quiz=1")'.
    """
    name, bracket, inside = text.strip().partition("(")
    if not bracket:
        return name, {}
    if not inside.endswith(")"):
        raise SettingsError(f"{text}: write parameters in brackets, tagcos(clusters=50).")
    parameters = {}
    for assignment in filter(None, (part.strip() for part in OUTSIDE_QUOTES.split(inside[:-1]))):
        key, equals, value = assignment.partition("=")
        if not equals:
            raise SettingsError(f"{text}: {assignment!r} is not name=value.")
        parameters[key.strip()] = value.strip().strip('"')
    return name, parameters


def split_methods(texts: Sequence[str]) -> list[str]:
    """`tagcos,gtp less(…, …)` as it comes from a command line: commas outside of brackets separate."""
    found, depth, word = [], 0, ""
    for letter in ",".join(texts):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth <= 0:
            found.append(word.strip())
            word = ""
        else:
            word += letter
    return [name for name in [*found, word.strip()] if name]
