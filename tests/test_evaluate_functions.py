"""Evaluation by functions of one's own, rows and settings that cannot be scored, and intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedModel

from pursuit.errors import DataError, ModelError, SettingsError
from pursuit.evaluate import (
    Evaluation,
    GenerationSettings,
    Respond,
    evaluate,
    load_function,
    named_functions,
    read_eval_set,
)
from pursuit.evaluate.intervals import macro_score, score
from pursuit.evaluate.scorers import reasoning_gym
from test_evaluate import CAPITALS, known_rows, learned, row, write  # noqa: F401  (learned is a fixture)
from tiny import tiny_model, tiny_tokenizer


def test_scorers_see_prompt_response_and_row_and_players_the_model(
    learned: PreTrainedModel,  # noqa: F811
    tmp_path: Path,
) -> None:
    rows = [{**given, "points": number} for number, given in enumerate(known_rows())]

    def points(prompt: list[dict[str, str]], response: str, row: Mapping[str, Any]) -> float:
        country = prompt[-1]["content"].removeprefix("Capital of ").removesuffix("?")
        return row["points"] if CAPITALS.get(country) == response else -1

    def chain(respond: Respond, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """Two questions one after the other, the second after the answer to the first."""
        first = respond([[{"role": "user", "content": f"Capital of {country}?"}] for country in CAPITALS])
        again = respond([[{"role": "user", "content": "1 + 1"}]])
        return [float([*first, *again] == [*CAPITALS.values(), "2"])] * 4 + [np.nan] * 3

    found = evaluate(
        learned, tiny_tokenizer(), write(tmp_path / "rows.jsonl", rows), metrics=[], scorers={"points": points},
        players={"chain": chain},
    )  # fmt: skip
    assert found.examples["points"].to_pylist() == [0, 1, 2, 3, -1, -1, -1]
    assert found.overall["chain"].mean == 1
    assert found.left_out["chain"] == 3


def test_a_player_may_have_the_model_choose(learned: PreTrainedModel, tmp_path: Path) -> None:  # noqa: F811
    """The likeliest of options that differ from one conversation to the next, as the metric scores them."""

    def choosing(respond: Respond, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        asked = [[{"role": "user", "content": f"Capital of {country}?"}] for country in CAPITALS]
        options = [["Lisbon", *list(CAPITALS.values())[: number + 1]] for number in range(len(CAPITALS))]
        assert respond.choose(asked, options) == [1, 2, 3, 4]
        assert respond.choose(asked[::-1], [["Oslo"]] * 4) == [0] * 4
        assert respond.choose([], []) == []
        with pytest.raises(DataError, match="among no options"):
            respond.choose(asked[:1], [[]])
        with pytest.raises(DataError, match="does not fit into"):
            respond.choose(asked[:1], [["Paris", "far " * 3000]])
        with pytest.raises(ValueError, match="shorter"):
            respond.choose(asked, options[:3])
        return [1.0] * len(rows)

    path = write(tmp_path / "rows.jsonl", known_rows())
    found = evaluate(learned, tiny_tokenizer(), path, metrics=["choice"], players={"choosing": choosing})
    assert found.overall["choosing"].mean == found.overall["choice"].mean == 1


def test_a_scorer_that_fails_names_the_row(learned: PreTrainedModel, tmp_path: Path) -> None:  # noqa: F811
    def scorer(prompt: list[dict[str, str]], response: str, row: Mapping[str, Any]) -> float:
        return {"Paris": 1.0, "Rome": float("nan")}[response]

    def run(rows: list[dict[str, Any]]) -> Evaluation:
        path = write(tmp_path / "rows.jsonl", rows)
        return evaluate(learned, tiny_tokenizer(), path, metrics=[], scorers={"mine": scorer})

    with pytest.raises(DataError, match=r"line 2: the scorer mine gave nan"):
        run(known_rows()[:2])
    with pytest.raises(DataError, match=r"line 2: the scorer mine failed on it: KeyError"):
        run([known_rows()[0], known_rows()[2]])
    with pytest.raises(SettingsError, match="the player two returned 1 scores for 7 rows"):
        evaluate(
            learned, tiny_tokenizer(), write(tmp_path / "rows.jsonl", known_rows()), metrics=[],
            players={"two": lambda respond, rows: [1.0]},
        )  # fmt: skip


def test_reasoning_gym_scores_its_own_entries() -> None:
    gym = pytest.importorskip("reasoning_gym")
    for name in ("chain_sum", "letter_counting"):
        entry = json.loads(json.dumps(gym.create_dataset(name, seed=7, size=1)[0]))
        row = {"metadata": {"dataset": name, "entry": entry}}
        assert reasoning_gym([], entry["answer"], row) == 1
        assert reasoning_gym([], "no idea", row) < 0.1


def test_functions_are_found_by_name() -> None:
    place = "pursuit.evaluate.scorers:reasoning_gym"
    assert load_function(place) is reasoning_gym
    assert named_functions([place, f"mine={place}"]) == {"reasoning_gym": reasoning_gym, "mine": reasoning_gym}
    with pytest.raises(SettingsError, match="two called 'mine'"):
        named_functions([f"mine={place}", f"mine={place}"])
    for place, reason in {
        "json.dumps": "package.module:function", "no_such_module:f": "cannot be imported", "json:nothing": "has no",
        "pursuit.evaluate.plan:METRICS": "not a function",
    }.items():  # fmt: skip
        with pytest.raises(SettingsError, match=reason):
            load_function(place)


PARIS = row("Capital of France?", "Paris", "a")


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({**PARIS, "options": ["Rome", "Oslo"]}, "the response is 'Paris', which is none of its options"),
    ({**PARIS, "options": ["Rome", "Paris"], "answer": "B"}, "field 'answer' is 'B', which is none"),
    ({**PARIS, "options": ["Rome", "Paris"], "answer": 2}, "answer 2 is no position in its 2 options"),
    ({**PARIS, "options": ["Paris"]}, "at least two options"),
    ({**PARIS, "options": ["Paris", "Paris"]}, "no two of them the same"),
    ({**PARIS, "options": "Paris"}, "a list of texts"),
    ({"text": ""}, "empty text"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_ROWS)
def test_a_row_that_cannot_be_scored_is_named_with_its_line_or_skipped(
    bad: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    from pursuit.pool import Pool

    path = write(tmp_path / "rows.jsonl", [PARIS, bad])
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: .*{reason}"):
        read_eval_set(path, tiny_tokenizer())
    data = read_eval_set(Pool(path, on_bad_row="skip"), tiny_tokenizer())
    assert len(data) == 1
    assert [refusal.line for refusal in data.refused] == [2]


def test_what_cannot_be_done_is_said_before_the_model_is_used(tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was used")

    model = tiny_model("llama")
    model.forward = refuse  # type: ignore[method-assign]
    chat, plain = write(tmp_path / "chat.jsonl", [PARIS]), write(tmp_path / "plain.jsonl", [{"text": "a poem"}])
    empty = write(tmp_path / "empty.jsonl", [])

    def asked(data: Path | None, **more: Any) -> Callable[[], Evaluation]:
        return lambda: evaluate(model, tiny_tokenizer(), data, **more)

    cases: list[tuple[Callable[[], Evaluation], type[Exception], str]] = [
        (asked(chat, metrics=["los"]), SettingsError, "'los' is not known; choose from loss, exact, choice"),
        (asked(chat, metrics=["choice"]), DataError, "none of the 1 rows has options"),
        (asked(plain, metrics=["exact"]), DataError, "plain text"),
        (asked(empty), DataError, "the file holds no rows"),
        (asked(chat, metrics=[]), SettingsError, "no metric was asked for"),
        (asked(None), SettingsError, "nothing to score on"),
        (asked(chat, scorers={"loss": lambda *_: 1.0}), SettingsError, "name is taken"),
    ]
    for call, kind, reason in cases:
        with pytest.raises(kind, match=reason):
            call()
    with pytest.raises(SettingsError, match="at least 1"):
        GenerationSettings(max_new_tokens=0)


def test_plain_texts_have_a_loss_and_are_left_out_of_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "The capital of France is Paris.", "source": "texts"}, PARIS])
    found = evaluate(tiny_model("opt"), tiny_tokenizer(), path)
    assert found.left_out == {"loss": 0, "exact": 1}
    assert found.examples["prediction"].null_count == found.examples["reference"].null_count == 1


def test_a_broken_model_is_an_error_that_says_so(tmp_path: Path) -> None:
    model = tiny_model("llama")
    nn.init.constant_(model.lm_head.weight, torch.nan)
    with pytest.raises(ModelError, match=r"not a number on 1 of 1 rows, the first .*rows\.jsonl, line 1"):
        evaluate(model, tiny_tokenizer(), write(tmp_path / "rows.jsonl", [PARIS]), metrics=["loss"])


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    draw = np.random.default_rng(0)
    covered: dict[str, list[bool]] = {}
    for _ in range(1500):
        cases = {
            "normal": (score(draw.normal(3, 2, 12)), 3),
            "share": (score(draw.random(40) < 0.3), 0.3),
            "rare": (score(draw.random(30) < 0.02), 0.02),
            "macro": (macro_score([draw.normal(mean, 1 + mean, 20) for mean in range(6)]), 2.5),
            "few each": (macro_score([draw.normal(mean, 1, 3) for mean in range(4)]), 1.5),
            "macro share": (macro_score([draw.random(15) < mean / 8 for mean in range(9)]), 0.5),
            "macro share, few each": (macro_score([draw.random(2) < 0.5 for _ in range(57)]), 0.5),
        }
        for name, (found, truth) in cases.items():
            covered.setdefault(name, []).append(found.low <= truth <= found.high)  # type: ignore[operator]
    shares = {name: np.mean(values) for name, values in covered.items()}
    assert all(share > 0.92 for share in shares.values()), shares
    assert all(shares[name] < 0.975 for name in ("normal", "share", "macro")), shares


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_an_interval_holds_its_mean(values: list[float]) -> None:
    found = score(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    if found.low is not None and found.high is not None:
        assert found.low - 1e-9 <= found.mean <= found.high + 1e-9
    else:
        assert len(values) == 1
