"""Text games, played to their end."""

from __future__ import annotations

from dataclasses import replace

from demo.fetch import fetch_model

from experiments.mixed.setting import TRAINING as MIXED_TRAINING
from experiments.robustness.study import Folders, Games, Study
from experiments.textgames.data import TARGETS, Sizes
from experiments.textgames.setting import TRAINING, held_out
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
    games = Games.made(
        folders.textgames / "reader", READER, READER_TRAINING, ("first.jsonl", "games/pool.jsonl")
    )  # fmt: skip
    comparison = games.comparison(
        "targeted", train=replace(TRAINING, max_steps=PLAYED_STEPS, learning_rate=1e-3), players=CHOOSERS,
        methods=("gtp", "gtp(in_domain=true)", "tagcos(clusters=20)", "less", "random"),
        evaluation=[*held_out(games.data, TARGETS), *held_out(games.data, TARGETS, "games")],
    )  # fmt: skip
    return Study(
        "Text games of three kinds (120 games each, with wrong answers and copies as before), learnt by a Llama of 0.9 "
        f"million weights that had {READER_TRAINING.max_steps:,} steps of 16 on five other kinds. {PLAYED_STEPS} steps "
        "at half of the usual rate, then eighty unseen games of each kind are played; each action is the likeliest of "
        "those that the game understands. *success* is the share that is won, *score* the mean of the games' own "
        "scores; *loss* and *exact* are of steps of other unseen games and of these games' first steps.",
        {"three kinds": {"": (games.run(), comparison)}},
    )  # fmt: skip
