"""The pool (steps of text games; copies and wrong answers planted), the held-out rows, and the model to start from.

The games' steps come from `experiments.pools.textgames`. Of its games to train on, some train the first model, and the
others are the pool: a model that knows a little of every game, and a pool to get better with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.pools.policy import make_policy
from experiments.pools.textgames import make_textgames
from pursuit.encoding import Encoder, encode_pool
from pursuit.files import write_json, write_text
from pursuit.finetune import FineTune, finetune
from pursuit.models.loading import load_model, load_tokenizer
from pursuit.models.trainable import prepare_trainable
from pursuit.pool import Pool

KINDS = ("coin", "cookingworld", "mapreader", "peckingorder", "simonsays", "twc")
TARGETS = ("coin", "cookingworld", "mapreader")
OTHERS = ("arithmetic", "sorting", "peckingorder", "simonsays", "twc")
FIRST_TRAINING = FineTune(
    max_steps=80, batch_size=16, learning_rate=1e-3, schedule="cosine", micro_batch_tokens=1024, seed=0
)
OTHER_EVAL = 5  # games of the other kinds that are held out, and not used
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Of the experiment's data.

    Attributes:
        kinds: of the games in the pool.
        train_games: of each kind; the first `first_games` of them train the model to start from.
        other_games: of each of `OTHERS`, which train the model to start from instead, if there are any.
        clean, wrong, copies: rows of the pool.
        eval_rows: held-out rows of each kind, at most.
        eval_games: of each kind, whose steps are held out.
        played_games: of each kind, others, to be played; as many as those if not given.
        max_length: tokens of a row.
    """

    kinds: tuple[str, ...] = KINDS
    train_games: int = 60
    first_games: int = 20
    other_games: int = 0
    clean: int = 1500
    wrong: int = 250
    copies: int = 250
    eval_rows: int = 30
    eval_games: int = 10
    played_games: int | None = None
    max_length: int = 512


def make_data(folder: Path, sizes: Sizes, seed: int = 0) -> Path:
    """Write first.jsonl, pool.jsonl, eval-KIND.jsonl, target-KIND.jsonl, games-KIND.jsonl; skipped where it stands.

    A row of the pool has `planted`: "" for a step of a gold path, "wrong" for such a step with the action of another
    step of the same kind of game in place of its own, "copy" for a step that stands in the pool twice.
    """
    if (folder / "about.json").exists():
        return folder
    games = make_textgames(folder / "games", sizes.kinds, sizes.train_games, sizes.eval_games, sizes.played_games)
    first, rest = _split(_read(games / "pool.jsonl"), 0 if sizes.other_games else sizes.first_games)
    if sizes.other_games:
        first = _read(make_textgames(folder / "others", OTHERS, sizes.other_games, OTHER_EVAL) / "pool.jsonl")
    pool = planted(rest, sizes, np.random.default_rng(seed))
    _write(folder / "first.jsonl", first)
    _write(folder / "pool.jsonl", pool)
    held_out, target, played = (_read(games / f"{name}.jsonl") for name in ("eval", "target", "games"))
    for kind in sizes.kinds:
        mine = [row for row in held_out if row["source"] == kind]
        places = np.linspace(0, len(mine) - 1, min(sizes.eval_rows, len(mine))).round().astype(int)
        _write(folder / f"eval-{kind}.jsonl", [mine[place] for place in places])
        _write(folder / f"target-{kind}.jsonl", [row for row in target if row["source"] == kind])
        _write(folder / f"games-{kind}.jsonl", [row for row in played if row["source"] == kind])
    write_json(folder / "about.json", {"first_rows": len(first), "pool_rows": len(pool), **asdict(sizes)})
    return folder


def planted(rows: list[Row], sizes: Sizes, random: np.random.Generator) -> list[Row]:
    """The pool in random order: clean rows, rows with wrong answers, and copies of clean rows."""
    drawn = [rows[place] for place in random.permutation(len(rows))]
    if len(drawn) < sizes.clean + sizes.wrong:
        raise SystemExit(f"{len(drawn):,} steps: too few for {sizes.clean:,} clean and {sizes.wrong:,} wrong rows.")
    clean, spoilt = drawn[: sizes.clean], drawn[sizes.clean : sizes.clean + sizes.wrong]
    wrong = [_wrong(row, drawn, random) for row in spoilt]
    copies = [clean[place] for place in random.choice(sizes.clean, sizes.copies, replace=False)]
    parts = (("", clean), ("wrong", wrong), ("copy", copies))
    pool = [{**row, "planted": name} for name, part in parts for row in part]
    return [pool[place] for place in random.permutation(len(pool))]


def first_model(
    data: Path, folder: Path, max_length: int, recipe: FineTune = FIRST_TRAINING,
    words: Sequence[str] = ("first.jsonl",), **made: Any,
) -> Path:  # fmt: skip
    """A model trained on first.jsonl, with a tokenizer made from the files `words`; skipped where it stands.

    `made`: arguments of `make_policy`.
    """
    policy = folder / "policy"
    if not (policy / "config.json").exists():
        make_policy([data / name for name in words], policy, **made)
    tokenizer = load_tokenizer(str(policy))
    rows = encode_pool(Pool([str(data / "first.jsonl")]), Encoder(tokenizer, max_length=max_length), folder / "encoded")
    torch.manual_seed(0)
    model = prepare_trainable(load_model(str(policy), dtype="float32", device="cpu"), weights=["*"])
    return finetune(model, rows, folder / "model", recipe, tokenizer=tokenizer).folder


def planted_in(data: Path) -> list[Mapping[str, str]]:
    """Kind and what was planted, of each row of the pool."""
    return [{"kind": row["source"], "planted": row["planted"]} for row in _read(data / "pool.jsonl")]


def prompts_of(data: Path) -> list[tuple[str, str]]:
    """(prompt, answer) of each row of the pool."""
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in _read(data / "pool.jsonl")]


def _split(rows: list[Row], first_games: int) -> tuple[list[Row], list[Row]]:
    """Steps of the first games of each kind, and those of the others."""
    seen: dict[str, list[int]] = {}
    for row in rows:
        game, mine = row["metadata"]["game"]["seed"], seen.setdefault(row["source"], [])
        if game not in mine:
            mine.append(game)
    firsts = {kind: set(games[:first_games]) for kind, games in seen.items()}
    is_first = [row["metadata"]["game"]["seed"] in firsts[row["source"]] for row in rows]
    return (
        [row for row, first in zip(rows, is_first, strict=True) if first],
        [row for row, first in zip(rows, is_first, strict=True) if not first],
    )


def _wrong(row: Row, rows: list[Row], random: np.random.Generator) -> Row:
    """The row with another action that is taken in games of its kind."""
    question, answer = row["messages"]
    others = sorted({
        other["messages"][1]["content"] for other in rows if other["source"] == row["source"]
    } - {answer["content"]})  # fmt: skip
    return {**row, "messages": [question, {**answer, "content": others[int(random.integers(len(others)))]}]}


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
