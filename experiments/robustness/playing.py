"""Text games, played to their end."""

from __future__ import annotations

from dataclasses import replace

from demo.fetch import fetch_model

from experiments.mixed.setting import TRAINING as MIXED_TRAINING
from experiments.robustness.games import LONGER
from experiments.robustness.study import Folders, Games, Study
from experiments.textgames.data import TARGETS, Sizes
from experiments.textgames.setting import RUN, TRAINING, held_out
from pursuit import Run
from pursuit.compare import Comparison
from pursuit.finetune import FineTune

PLAYED_STEPS = 200
PLAYERS = ("experiments.pools.players:success", "experiments.pools.players:score")
CHOOSERS = ("success=experiments.pools.players:chosen_success", "score=experiments.pools.players:chosen_score")
READER = Sizes(kinds=TARGETS, train_games=120, other_games=400, eval_games=20, played_games=80)
READER_TRAINING = FineTune(
    max_steps=3000, batch_size=16, learning_rate=1e-3, schedule="cosine", micro_batch_tokens=2048, seed=0
)


def played_larger(folders: Folders) -> Study:
    """What a small model chose, played by one that can read."""
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


def played_reader(folders: Folders) -> Study:
    """Kinds of games that the first model has never seen, learnt from the pool, and won by choosing among actions."""
    games = _reader(folders)
    comparison = _compared(games, "gtp", "gtp(in_domain=true)", "tagcos(clusters=20)", "less", "random")
    return Study(
        "Text games of three kinds (120 games each, with wrong answers and copies as before), learnt by a Llama of 0.9 "
        f"million weights that had {READER_TRAINING.max_steps:,} steps of 16 on five other kinds. {PLAYED_STEPS} steps "
        "at half of the usual rate, then eighty unseen games of each kind are played; each action is the likeliest of "
        "those that the game understands. *success* is the share that is won, *score* the mean of the games' own "
        "scores; *loss* and *exact* are of steps of other unseen games and of these games' first steps.",
        {"three kinds": {"": (games.run(), replace(comparison, players=CHOOSERS))}},
    )  # fmt: skip


def tagcos_ablations(folders: Folders) -> Study:
    """TAGCOS with other clusters, ridges, dimensions and checkpoints, on the games where it is told from random."""
    games = _reader(folders)
    clusters = [f"tagcos(clusters={count})" for count in (5, 20, 50, 100)]
    ridges = [f"tagcos(clusters=20,ridge={ridge:g})" for ridge in (0.01, 10)]
    gradients = {
        "2,048 numbers, steps 8 and 16": games.run(), "256 numbers": games.run("256-numbers"),
        "step 16 alone": _after(games, 16), "steps 4, 8, 12, 16": _after(games, 4, 8, 12, 16),
        "steps 128 and 256": games.run(warmup=RUN["warmup"] | LONGER),
    }  # fmt: skip
    usual = _compared(games, "tagcos(clusters=20)", "random")
    return Study(
        "What TAGCOS owes to its settings: text games as in *played-reader*, by the same rows, without playing. Its "
        "default ridge is 1.",
        {
            "clusters and ridge": {"usual": (games.run(), _compared(games, *clusters, *ridges, "random"))},
            "gradients": {label: (run, usual) for label, run in gradients.items()},
        },
        overlaps=("tagcos(clusters=20)",),
    )


def _reader(folders: Folders) -> Games:
    return Games.made(folders.textgames / "reader", READER, READER_TRAINING, ("first.jsonl", "games/pool.jsonl"))


def _compared(games: Games, *methods: str) -> Comparison:
    return games.comparison(
        "targeted", methods=methods, train=replace(TRAINING, max_steps=PLAYED_STEPS, learning_rate=1e-3),
        evaluation=[*held_out(games.data, TARGETS), *held_out(games.data, TARGETS, "games")],
    )  # fmt: skip


def _after(games: Games, *steps: int) -> Run:
    """Gradients at these steps of the warm-up."""
    return games.run(warmup=RUN["warmup"] | {"checkpoint_steps": list(steps)})
