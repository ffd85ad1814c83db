"""What is changed after the choice (or before it), and what is then compared.

All choices are by pursuit's own gradients (`default` in experiments/gradients.py), of the two experiments' pools, whose
folders have the data and the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from demo.fetch import fetch_model

from experiments.mixed.setting import FAMILIES, Draw, mixed_data, mixed_run
from experiments.mixed.setting import TRAINING as MIXED_TRAINING
from experiments.robustness.gemma import fetch_gemma
from experiments.textgames.data import FIRST_TRAINING, KINDS, TARGETS, Sizes, first_model, make_data
from experiments.textgames.setting import RUN, TRAINING, games_run, held_out
from pursuit import Run
from pursuit.compare import Comparison

PLAYED_STEPS = 200
TARGETED = ("gtp", "less", "rds", "random")
IN_DOMAIN = ("gtp(in_domain=true)", "tagcos(clusters=20)", "random")
TRANSFERRED = ("gtp", "tagcos(clusters=10)", "random")
MIXED = ("gtp", "less", "tagcos(clusters=10)", "random")
INSTRUCTIONS = Draw(
    eval_rows=8, max_characters=650,
    families=(
        "subtask018_mctaco_temporal_reasoning_presence", "subtask033_winogrande_answer_generation",
        "subtask039_qasc_find_overlapping_words", "subtask041_qasc_answer_generation",
        "subtask043_essential_terms_answering_incomplete_questions", "subtask046_miscellaenous_question_typing",
        "subtask050_multirc_answerability", "subtask051_multirc_correct_answer_single_sentence",
    ),
)  # fmt: skip
Changes = dict[str, dict[str, Any]]
GOALS = {"targeted": (TARGETED, TARGETS), "in-domain": (IN_DOMAIN, KINDS)}
OPTIMIZERS = {"adafactor": 2e-3, "sgd": 0.3}  # and their learning rates
LONGER: dict[str, Any] = {"checkpoint_steps": [128, 256], "sample": 1024, "epochs": 4}  # 16 times the warm-up's steps
PLAYERS = ("experiments.pools.textgames:success", "experiments.pools.textgames:score")


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
    """

    about: str
    goals: Mapping[str, Mapping[str, tuple[Run, Comparison]]] = field(default_factory=dict)
    aimed: tuple[str, ...] = ()
    curves: str = ""


@dataclass(frozen=True)
class Games:
    """The text-game experiment's data and first model."""

    out: Path
    data: Path
    model: Path

    @classmethod
    def made(cls, out: Path) -> Games:
        """Skipped where they stand."""
        data = make_data(out / "data", Sizes())
        return cls(out, data, first_model(data, out / "first", Sizes().max_length))

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


def models(folders: Folders) -> Study:
    """Another architecture, tokenizer and first training."""
    games = Games.made(folders.textgames)
    other = first_model(
        games.data, folders.textgames / "second", Sizes().max_length, replace(FIRST_TRAINING, seed=1),
        seed=1, architecture="gpt_neox", vocabulary=768,
    )  # fmt: skip
    changes: Changes = {"the model that chose": {}, "a GPT-NeoX": {"train_model": str(other), "all_weights": True}}
    return Study(
        "What the Llama of the text games chose, trained by a GPT-NeoX of 0.9 million weights with a tokenizer of its "
        "own, which had the same first training.", {goal: games.changed(goal, changes) for goal in GOALS},
    )  # fmt: skip


def optimizers(folders: Folders) -> Study:
    """Other optimizers."""
    games = Games.made(folders.textgames)
    changes: Changes = {"adamw": {}} | {
        name: {"train": replace(TRAINING, optimizer=name, learning_rate=rate)} for name, rate in OPTIMIZERS.items()
    }
    rates = ", ".join(f"{name} {rate:g}" for name, rate in OPTIMIZERS.items())
    return Study(
        f"Text games: selected by Adam's steps, trained by other optimizers (peak learning rates: {rates}).",
        {"targeted": games.changed("targeted", changes)},
    )


def schedules(folders: Folders) -> Study:
    """Another learning-rate schedule."""
    games = Games.made(folders.textgames)
    changes: Changes = {name: {"train": replace(TRAINING, schedule=name)} for name in ("linear", "constant")}
    return Study("Text games: trained at a constant rate.", {"targeted": games.changed("targeted", changes)})


def warmups(folders: Folders) -> Study:
    """A longer warm-up, with Adam's steps and with plain gradients."""
    games = Games.made(folders.textgames)
    changes: Changes = {"16 steps": {}, "256 steps": {"warmup": RUN["warmup"] | LONGER}}
    runs = {
        f"{'plain' if gradients == 'sgd' else 'adam'}, {name}": games.run(gradients, **changed)
        for name, changed in changes.items()
        for gradients in ("default", "sgd")
    }
    return Study(
        "Text games: gradients at checkpoints of a longer warm-up. The trainings all begin with the first model.",
        {goal: {label: (run, games.comparison(goal)) for label, run in runs.items()} for goal in GOALS},
    )


def budgets(folders: Folders) -> Study:
    """From half a percent to a fifth."""
    games = Games.made(folders.textgames)
    chosen = {"targeted": ("gtp", "rds", "random"), "in-domain": ("tagcos(clusters=20)", "random")}
    goals = {}
    for goal, methods in chosen.items():
        changes = {share: {"methods": methods, "budgets": (share,)} for share in ("0.5%", "1%", "2%", "5%", "20%")}
        goals[goal] = games.changed(goal, changes)
    return Study("Text games: rising budgets.", goals)


def iterations(folders: Folders) -> Study:
    """What the published loop has chosen after each of its iterations."""
    games = Games.made(folders.textgames)
    loop = tuple(f"gtp(refine=none, iterations={count})" for count in (1, 2, 3, 5, 10))
    return Study(
        "Text games: GTP's published loop stopped after 1 to 10 iterations, and with the support refined (*gtp*). "
        "The residuals are those of the loop of 10.",
        {"targeted": {"": (games.run(), games.comparison("targeted", methods=(*loop, "gtp", "random")))}},
        curves=loop[-1],
    )  # fmt: skip


def played(folders: Folders) -> Study:
    """Games that no model has seen, played to their end."""
    games = Games.made(folders.textgames)
    change = {
        "train": replace(TRAINING, max_steps=PLAYED_STEPS), "methods": ("gtp", "less", "random"), "players": PLAYERS,
        "evaluation": held_out(games.data, TARGETS, "games"),
    }  # fmt: skip
    return Study(
        f"Text games: trained for {PLAYED_STEPS} steps instead of {TRAINING.max_steps}, then ten unseen games of each "
        "kind are played; *success* is the share that is won, *score* the mean of the games' own scores (shares of a "
        "task), *loss* and *exact* are of their first steps.", {"targeted": games.changed("targeted", {"": change})},
    )  # fmt: skip


def played_larger(folders: Folders) -> Study:
    """The same games, won by a model that can read them."""
    games = Games.made(folders.textgames)
    run = games.run("default", lora={"rank": 16, "alpha": 64})
    change = {
        "train": replace(MIXED_TRAINING, max_steps=16, micro_batch_tokens=1024), "methods": ("gtp", "random"),
        "players": PLAYERS, "train_model": str(fetch_model()), "train_template": "chatml",
        "evaluation": held_out(games.data, TARGETS, "games"),
    }  # fmt: skip
    return Study(
        "Text games: what the small Llama chose, trained by SmolLM2-135M-Instruct (LoRA of rank 16 on its attention "
        "projections, 16 steps of 8 rows); then ten unseen games of each kind are played. A "
        "reply that the game would not understand is taken as the valid action that is most like it.",
        {"targeted": {"": (run, games.comparison("targeted", **change))}},
    )  # fmt: skip


def mixed_exact(folders: Folders) -> Study:
    """Exact answers instead of loss."""
    data = mixed_data(folders.mixed)
    run = mixed_run(folders.mixed, data, "default")
    compared = Comparison(
        methods=(*MIXED, _in_turn(FAMILIES)), budgets=("5%",), evaluation=[str(data / "eval.jsonl")],
        train=MIXED_TRAINING, metrics=("loss", "exact"),
    )  # fmt: skip
    return Study("Mixed pool, with exact answers.", {"ten families": {"": (run, compared)}})


def mixed_models(folders: Folders) -> Study:
    """SmolLM2 chooses, Gemma 3 is trained."""
    data = mixed_data(folders.mixed)
    run = mixed_run(folders.mixed, data, "default")
    compared = Comparison(
        methods=TRANSFERRED, budgets=("5%",), evaluation=[str(data / "eval.jsonl")], train=MIXED_TRAINING,
        train_model=str(fetch_gemma()), train_template="plain",  # Gemma would spell chatml's marks in letters
    )  # fmt: skip
    return Study(
        "Mixed pool: what SmolLM2-135M-Instruct chose, trained by Gemma 3 270M, a base model (LoRA of the same rank on "
        "all its attention projections).", {"ten families": {"": (run, compared)}},
    )  # fmt: skip


def natural_instructions(folders: Folders) -> Study:
    """Another draw of the mixed pool, of longer rows."""
    out = folders.mixed / "natural-instructions"
    data = mixed_data(out, INSTRUCTIONS)
    run = mixed_run(out, data, "default", max_length=400, on_bad_row="skip")  # one row has a NUL character
    compared = Comparison(
        methods=(*MIXED, _in_turn(INSTRUCTIONS.families)), budgets=("5%",), evaluation=[str(data / "eval.jsonl")],
        train=MIXED_TRAINING, metrics=("loss", "exact"),
    )  # fmt: skip
    return Study(
        "Another draw of the mixed pool: rows of up to 650 characters for 140, so that a third of them are of Natural "
        "Instructions, among which are tasks that ask for wrong answers; eight of its tasks are held out and aimed at.",
        {"eight tasks": {"": (run, compared)}}, INSTRUCTIONS.families,
    )  # fmt: skip


def _in_turn(families: Sequence[str]) -> str:
    """LESS, with the best rows of each family of the target in turn."""
    shares = ",".join(f"{family}=1" for family in families)
    return f'less(quotas="{shares}")'


STUDIES: dict[str, Callable[[Folders], Study]] = {
    "models": models, "optimizers": optimizers, "schedules": schedules, "warmups": warmups, "budgets": budgets,
    "iterations": iterations,
    "played": played, "played-larger": played_larger, "mixed-exact": mixed_exact, "mixed-models": mixed_models,
    "natural-instructions": natural_instructions,
}  # fmt: skip


def cells(study: Study) -> Iterator[tuple[str, str, Run, Comparison]]:
    """Goal, label, run, comparison."""
    for goal, columns in study.goals.items():
        for label, (run, comparison) in columns.items():
            yield goal, label, run, comparison
