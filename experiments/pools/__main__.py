"""`python -m experiments.pools mixed | textgames | policy`."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App

from experiments.pools.mixed import FAMILIES, make_mixed

app = App(name="experiments.pools", help=__doc__)


@app.command
def mixed(
    *, out: Path, rows: int = 2000, eval_rows: int = 40, target_rows: int = 10, family: list[str] | None = None,
    seed: int = 0, max_characters: int | None = None,
) -> None:  # fmt: skip
    """The mixed pool: pool.jsonl, eval.jsonl, target.jsonl, about.json.

    Args:
        out: The folder.
        rows: Rows of the pool.
        eval_rows: Held-out rows a family.
        target_rows: Rows a family of the target.
        family: Families to hold out, instead of the twelve named in mixed.py.
        seed: Of the draw.
        max_characters: Of prompt and answer together.
    """
    print(make_mixed(
        out, rows, eval_rows=eval_rows, target_rows=target_rows, families=family or FAMILIES, seed=seed,
        max_characters=max_characters,
    ))  # fmt: skip


@app.command
def textgames(*, out: Path, games: list[str] | None = None, train_games: int = 100, eval_games: int = 10) -> None:
    """Steps of text games on their gold paths, and games to play: pool.jsonl, eval.jsonl, target.jsonl, games.jsonl.

    Args:
        out: The folder.
        games: Which of TextWorldExpress' games; all eight if not given.
        train_games: Games of each kind whose steps are the pool.
        eval_games: Games of each kind to be played, and as many others whose steps are held out.
    """
    from experiments.pools.textgames import KINDS, make_textgames

    print(make_textgames(out, games or tuple(KINDS), train_games, eval_games))


@app.command
def policy(*, pool: Path, out: Path, seed: int = 0) -> None:
    """A small Llama (0.9 million weights, not trained yet) with a tokenizer made from a pool's own words.

    Args:
        pool: The JSONL file whose words it knows.
        out: The model's folder.
        seed: Of its weights.
    """
    from experiments.pools.policy import make_policy

    print(make_policy(pool, out, seed))


if __name__ == "__main__":
    app()
