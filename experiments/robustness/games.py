"""Text games: another model, optimizer, schedule, warm-up or budget, and the loop of GTP stopped early."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments.gradients import PROJECTION_SEEDS
from experiments.robustness.study import GOALS, IN_DOMAIN, Changes, Folders, Games, Study
from experiments.textgames.data import FIRST_TRAINING, Sizes, first_model
from experiments.textgames.setting import RUN, TRAINING

OPTIMIZERS = {"adafactor": 2e-3, "sgd": 0.3}  # and their learning rates
LONGER: dict[str, Any] = {"checkpoint_steps": [128, 256], "sample": 1024, "epochs": 4}  # 16 times the warm-up's steps


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


def projections(folders: Folders) -> Study:
    """Gradients that are never formed."""
    games = Games.made(folders.textgames)
    kinds = {"sparse": "256-numbers", "tensorsketch": "256-tensorsketch", "factored": "256-factored"}
    return Study(
        "Text games: all weights' gradients brought to d = 256 in three ways; tensorsketch and factored never form "
        "those of the matrices. (At d = 2,048, as elsewhere, this model's matrices are too small to be worth it.)",
        {goal: {label: (games.run(kind), games.comparison(goal)) for label, kind in kinds.items()} for goal in GOALS},
    )  # fmt: skip


def projection_seeds(folders: Folders) -> Study:
    """What a choice owes to the projection's own seed."""
    games = Games.made(folders.textgames)
    kinds = {"sparse": "256-numbers", "tensorsketch": "256-tensorsketch", "directions": "256-directions"}
    names = {
        f"{label} {seed}": f"{kind}-seed{seed}" if seed else kind
        for label, kind in kinds.items()
        for seed in (0, *PROJECTION_SEEDS)
    }
    names |= {"tensorsketch, 1,024 numbers": "1024-tensorsketch", "sparse, 2,048 numbers": "default"}
    comparison = games.comparison("targeted", methods=("gtp", "less", "random"))
    return Study(
        "Text games: three seeds of each projection to d = 256. *directions* is sparse with a quarter of the numbers "
        "for the leading directions of 125 rows of the pool and of the target's 123 (`--features.directions 0.25`). A "
        "method chooses the same rows for each seed of a training, so that ± is of trainings alone, and the seeds of a "
        "projection show what its noise does.",
        {"targeted": {label: (games.run(kind), comparison) for label, kind in names.items()}},
        overlaps=("gtp", "less"),
    )  # fmt: skip


def budgets(folders: Folders) -> Study:
    """From half a percent to a fifth."""
    games = Games.made(folders.textgames)
    chosen = {"targeted": ("gtp", "rds", "random"), "in-domain": ("tagcos(clusters=20)", "random")}
    goals = {}
    for goal, methods in chosen.items():
        changes = {share: {"methods": methods, "budgets": (share,)} for share in ("0.5%", "1%", "2%", "5%", "20%")}
        goals[goal] = games.changed(goal, changes)
    return Study("Text games: rising budgets.", goals)


def weighted(folders: Folders) -> Study:
    """Each row's loss times the weight that its selection gave it."""
    games = Games.made(folders.textgames)
    chosen = {"targeted": ("gtp", "omp", "random"), "in-domain": IN_DOMAIN}
    ways = {"unweighted": TRAINING, "weighted": replace(TRAINING, weighted=True)}
    goals: dict[str, Changes] = {
        goal: {
            f"{share}, {name}": {"methods": methods, "budgets": (share,), "train": way}
            for share in ("1%", "5%", "20%")
            for name, way in ways.items()
        }
        for goal, methods in chosen.items()
    }
    return Study(
        "Text games: trained with the weights of the selection (`--weighted`) and without.",
        {goal: games.changed(goal, changes) for goal, changes in goals.items()},
    )


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
