"""`evaluate`: every metric that is asked for, on the same rows, each computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import nn
from transformers import PreTrainedTokenizerBase

from pursuit.encoding.encoder import TrainOn
from pursuit.evaluate.generate import GenerationSettings
from pursuit.evaluate.harness import run_lm_eval
from pursuit.evaluate.parts import Parts, weights_digest
from pursuit.evaluate.plan import Plan
from pursuit.evaluate.result import Evaluation, summarise
from pursuit.evaluate.rows import EvalSet, read_eval_set
from pursuit.evaluate.scorers import Player, Scorer
from pursuit.pool import Pool

Data = EvalSet | Pool | str | Path | Sequence[str | Path]


def evaluate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    data: Data | None,
    *,
    metrics: Sequence[str] = ("loss", "exact"),
    scorers: Mapping[str, Scorer] | None = None,
    players: Mapping[str, Player] | None = None,
    generation: GenerationSettings | None = None,
    max_length: int = 2048,
    chat_template: str | Path | None = None,
    train_on: TrainOn = "all",
    batch_tokens: int | None = None,
    lm_eval: Sequence[str] = (),
    lm_eval_options: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
) -> Evaluation:
    """Score a causal language model on held-out rows.

    Args:
        model: on its device; its training mode is restored afterwards.
        tokenizer: the model's.
        data: rows as `read_eval_set` gives them, or a pool or paths to read; None with `lm_eval` alone.
        metrics: of "loss" (mean response loss, nats a token), "exact" (the greedy response equals the reference) and
            "choice" (the right one of the row's options is the most likely; by its sum, and as "choice_normalised" by
            its mean a byte).
        scorers: name → function of (prompt turns, response, the row's fields) to a number.
        players: name → function of (respond, fields of all rows) to a number for each row, NaN to leave a row out;
            `respond` takes a list of conversations and gives the model's reply to each.
        generation: of responses, for "exact", scorers and players.
        max_length, chat_template, train_on: how `data` is read, if it is not an `EvalSet` yet.
        batch_tokens: bound on the padded tokens in memory at once; does not change scores but by rounding. 8,192 on a
            CPU and 32,768 on a GPU if not given; batches are halved where memory runs out.
        lm_eval: tasks of lm-eval (names, or YAML files).
        lm_eval_options: of lm_eval.simple_evaluate: limit, num_fewshot, apply_chat_template, …
        out: folder for evaluation.json, examples.parquet, and finished parts: what stands there from the same weights,
            rows and settings is not computed again.

    Raises:
        SettingsError: an unknown metric, nothing to do, lm-eval missing; before any computing.
        DataError: a row cannot be used, or no row has what a metric needs; before any computing.
        ModelError: the model's loss is not a number.
    """
    plan = Plan(
        tuple(metrics), dict(scorers or {}), dict(players or {}), generation or GenerationSettings(), batch_tokens,
        tuple(lm_eval), dict(lm_eval_options or {}),
    )  # fmt: skip
    plan.check(data is not None)
    rows = _read(data, tokenizer, max_length, chat_template, train_on)
    plan.check_rows(rows)
    return carry_out(plan, model, tokenizer, rows, None if out is None else Path(out))


def carry_out(
    plan: Plan, model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: EvalSet | None, out: Path | None
) -> Evaluation:
    """What `evaluate` does, once everything is checked."""
    made_from = {"model": None if out is None else weights_digest(model)}
    about_rows = {**made_from, "rows": None if rows is None else rows.digest}
    table, benchmarks = _examples(rows), {}
    with _evaluating(model):
        if rows is not None:
            for name, column in plan.columns(model, rows, Parts(out, about_rows)):
                table = table.append_column(name, column)
        if plan.lm_eval:
            settings = {"tasks": plan.lm_eval, "options": plan.lm_eval_options}
            benchmarks = Parts(out, made_from).value(
                "lm-eval", settings, lambda: run_lm_eval(model, tokenizer, plan.lm_eval, plan.lm_eval_options)
            )
    averaged = plan.averaged() if rows is not None else []
    found = summarise(table, averaged, benchmarks, {**about_rows, **plan.described()})
    if out is not None:
        found.save(out)
    return found


def _read(
    data: Data | None, tokenizer: PreTrainedTokenizerBase, max_length: int, chat_template: str | Path | None,
    train_on: TrainOn,
) -> EvalSet | None:  # fmt: skip
    if data is None or isinstance(data, EvalSet):
        return data
    return read_eval_set(data, tokenizer, max_length=max_length, chat_template=chat_template, train_on=train_on)


def _examples(data: EvalSet | None) -> pa.Table:
    examples = [] if data is None else [row.example for row in data.rows]
    return pa.table(
        {
            "index": pa.array(range(len(examples)), pa.int64()),
            "source": pa.array([example.source for example in examples], pa.string()),
            "path": pa.array([example.path for example in examples], pa.string()),
            "line": pa.array([example.line for example in examples], pa.int64()),
        }
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; the mode of every module is as before afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
