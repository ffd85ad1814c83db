"""What is asked of an evaluation: checked before anything is computed, then computed column by column."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from pursuit.errors import DataError, SettingsError
from pursuit.evaluate.asking import Respond
from pursuit.evaluate.choice import score_options
from pursuit.evaluate.generate import GenerationSettings, generate_responses
from pursuit.evaluate.harness import check_lm_eval
from pursuit.evaluate.losses import response_losses
from pursuit.evaluate.parts import Parts
from pursuit.evaluate.prompts import row_prompt
from pursuit.evaluate.result import nullable
from pursuit.evaluate.rows import EvalSet
from pursuit.evaluate.scorers import Player, Scorer, play, score_responses

BATCH_TOKENS, BATCH_TOKENS_OF_A_GPU = 8192, 32768
METRICS = ("loss", "exact", "choice")
COLUMNS = ("index", "source", "path", "line", "prediction", "reference", "choice_normalised", "chosen")


@dataclass(frozen=True)
class Plan:
    """What is asked for; see `evaluate` for the meaning of each."""

    metrics: tuple[str, ...]
    scorers: dict[str, Scorer]
    players: dict[str, Player]
    generation: GenerationSettings
    batch_tokens: int | None
    lm_eval: tuple[str, ...] = ()
    lm_eval_options: dict[str, Any] = field(default_factory=dict)

    def check(self, has_rows: bool) -> None:
        """Raise a SettingsError for what cannot be done whatever the rows are."""
        check_metrics(self.metrics)
        own = [*self.scorers, *self.players]
        for name in own:
            if name in (*METRICS, *COLUMNS) or own.count(name) > 1:
                raise SettingsError(f"a scorer or player cannot be called {name!r}: that name is taken.")
        if not has_rows and (own or not self.lm_eval):
            raise SettingsError("nothing to score on: give held-out rows (--eval), or tasks of lm-eval (--lm-eval).")
        if has_rows and not (self.metrics or own or self.lm_eval):
            raise SettingsError(f"no metric was asked for; choose from {', '.join(METRICS)}.")
        if self.lm_eval:
            check_lm_eval()

    def check_rows(self, data: EvalSet | None) -> None:
        """Raise a DataError if no row has what a metric needs."""
        if data is None:
            return
        if "choice" in self.metrics and not any(row.options for row in data.rows):
            raise DataError(
                f"choice: none of the {len(data):,} rows has options. Rows need a field 'options' (or 'choices') with "
                "a list of texts, and 'answer' with the right one or its position; leave choice out otherwise."
            )
        if ("exact" in self.metrics or self.scorers) and all(row.prompt is None for row in data.rows):
            raise DataError(f"all {len(data):,} rows are plain text: without a prompt there is no response to compare.")

    def averaged(self) -> list[str]:
        """The columns that are averaged, in the order of the table."""
        names = [metric for metric in METRICS if metric in self.metrics]
        if "choice" in names:
            names.append("choice_normalised")
        return [*names, *self.scorers, *self.players]

    def described(self) -> dict[str, Any]:
        """JSON-able, for the result's settings."""
        return {
            "metrics": list(self.metrics), "scorers": list(self.scorers), "players": list(self.players),
            "generation": asdict(self.generation), "lm_eval": list(self.lm_eval),
            "lm_eval_options": self.lm_eval_options,
        }  # fmt: skip

    def at_once(self, model: nn.Module) -> int:
        """Padded tokens: as many as are asked for, or as suits the model's device."""
        usual = BATCH_TOKENS if next(model.parameters()).device.type == "cpu" else BATCH_TOKENS_OF_A_GPU
        return self.batch_tokens or usual

    def columns(self, model: nn.Module, data: EvalSet, parts: Parts) -> Iterator[tuple[str, pa.Array]]:
        """(name, column of N rows) of all that is asked for; null where a metric does not apply to a row."""
        if "loss" in self.metrics:
            yield "loss", parts.table("loss", {}, lambda: self._losses(model, data))["loss"]
        if "choice" in self.metrics:
            table = parts.table("choice", {}, lambda: self._choices(model, data))
            yield from ((name, table[name]) for name in table.column_names)
        if "exact" in self.metrics or self.scorers:
            yield from self._of_responses(model, data, parts)
        respond = Respond(model, data.encoder, self.generation, self.at_once(model))  # the same for every player
        for name, player in self.players.items():
            settings = {**asdict(self.generation), "function": f"{player.__module__}:{player.__qualname__}"}
            table = parts.table(f"player-{name}", settings, partial(_played, name, player, respond, data))
            yield name, table[name]

    def _losses(self, model: nn.Module, data: EvalSet) -> pa.Table:
        return pa.table({"loss": response_losses(model, data, self.at_once(model))})

    def _choices(self, model: nn.Module, data: EvalSet) -> pa.Table:
        choices = score_options(model, data.encoder, data.rows, self.at_once(model))
        right = [None if choice is None else float(choice.chosen == choice.answer) for choice in choices]
        a_byte = [None if choice is None else float(choice.chosen_normalised == choice.answer) for choice in choices]
        return pa.table(
            {
                "choice": pa.array(right, pa.float64()),
                "choice_normalised": pa.array(a_byte, pa.float64()),
                "chosen": pa.array([None if choice is None else choice.chosen for choice in choices], pa.int64()),
            }
        )

    def _of_responses(self, model: nn.Module, data: EvalSet, parts: Parts) -> Iterator[tuple[str, pa.Array]]:
        settings: dict[str, Any] = {name: getattr(self.generation, name) for name in ("max_new_tokens", "first_line")}
        predictions = parts.table("responses", settings, lambda: self._responses(model, data))["prediction"]
        responses = predictions.to_pylist()
        yield "prediction", predictions
        yield "reference", pa.array([None if row.prompt is None else row.reference for row in data.rows], pa.string())
        if "exact" in self.metrics:
            matches = [
                np.nan if response is None else float(self.generation.match(response, row.reference))
                for row, response in zip(data.rows, responses, strict=True)
            ]
            yield "exact", nullable(np.array(matches))
        for name, scorer in self.scorers.items():
            yield name, nullable(score_responses(scorer, name, data.rows, responses))

    def _responses(self, model: nn.Module, data: EvalSet) -> pa.Table:
        asked = [place for place, row in enumerate(data.rows) if row.prompt is not None]
        limit, first_line = self.generation.max_new_tokens, self.generation.first_line
        prompts = [row_prompt(data.encoder, data.rows[place], limit, first_line) for place in asked]
        found: list[str | None] = [None] * len(data)
        responses = generate_responses(model, data.encoder.tokenizer, prompts, self.at_once(model))
        for place, response in zip(asked, responses, strict=True):
            found[place] = response
        return pa.table({"prediction": pa.array(found, pa.string())})


def _played(name: str, player: Player, respond: Respond, data: EvalSet) -> pa.Table:
    return pa.table({name: nullable(play(player, name, data.rows, respond))})


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise a SettingsError for a name that is no metric."""
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise SettingsError(f"metrics: {unknown[0]!r} is not known; choose from {', '.join(METRICS)}.")
