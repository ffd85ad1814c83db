"""Scores are what they say: the loss of the response, the greedy response, the likeliest option, row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from pursuit.batches import collate, plan_batches, where_it_fits
from pursuit.errors import ModelError
from pursuit.evaluate import EvalSet, GenerationSettings, evaluate, read_eval_set
from pursuit.evaluate.choice import score_options
from pursuit.evaluate.generate import generate_responses
from pursuit.evaluate.prompts import Prompt, conversation_prompt, row_prompt, stop_tokens
from pursuit.gradients.losses import example_losses
from tiny import CHATML, CHATML_MARKED, CONFIGS, tiny_model, tiny_tokenizer

CAPITALS = {"France": "Paris", "Italy": "Rome", "Greece": "Athens", "Spain": "Madrid"}
SUMS = {"1 + 1": "2", "2 + 3": "5", "4 + 4": "8"}


def row(prompt: str, response: str, source: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return {"messages": messages, "source": source, **more}


def known_rows() -> list[dict[str, Any]]:
    """What `learned` has learnt: capitals with options, sums without."""
    options = list(CAPITALS.values())
    capitals = [row(f"Capital of {c}?", a, "capitals", options=options, answer=a) for c, a in CAPITALS.items()]
    return capitals + [row(question, answer, "sums") for question, answer in SUMS.items()]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    """A model trained until it gives the known rows' responses."""
    model = tiny_model("llama")
    data = read_eval_set(write(tmp_path_factory.mktemp("known") / "known.jsonl", known_rows()), tiny_tokenizer())
    batch = collate(data, range(len(data)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = example_losses(model, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    return model.eval()


def varied(tmp_path: Path, count: int = 12) -> EvalSet:
    """Rows of many lengths, some with two to four options, some without."""
    draw = np.random.default_rng(0)
    words = "Paris Rome sea wind apple good morning letters answer 42 question capital France poem".split()

    def text(most: int) -> str:
        return " ".join(draw.choice(words, size=draw.integers(1, most + 1)))

    rows = []
    for number in range(count):
        reply = text(4)
        others = [f"{text(6)} {letter}" for letter in "abc"][: draw.integers(1, 4)]
        options = {"choices": [*others, reply]} if number % 2 else {}
        rows.append(row(text(14), reply, f"family {number % 3}", **options))
    return read_eval_set(write(tmp_path / "varied.jsonl", rows), tiny_tokenizer())


def test_loss_is_the_mean_over_response_tokens_averaged_over_rows_and_over_families(tmp_path: Path) -> None:
    model, data = tiny_model("llama"), varied(tmp_path)
    found = evaluate(model, data.encoder.tokenizer, data, metrics=["loss"], batch_tokens=300)
    by_hand = []
    for number in range(len(data)):
        ids, response = data[number]
        with torch.no_grad():
            logits = model(torch.tensor(ids[None].astype(np.int64))).logits[0, :-1]
        token_losses = F.cross_entropy(logits, torch.tensor(ids[1:].astype(np.int64)), reduction="none").numpy()
        by_hand.append(token_losses[response[1:]].mean())
    losses = found.examples["loss"].to_numpy()
    np.testing.assert_allclose(losses, by_hand, rtol=1e-4)
    assert found.overall["loss"].mean == pytest.approx(np.mean(losses))
    families = [losses[number::3] for number in range(3)]
    assert found.macro["loss"].mean == pytest.approx(np.mean([family.mean() for family in families]))
    assert found.families["family 1"]["loss"].mean == pytest.approx(families[1].mean())
    assert found.examples["line"].to_pylist() == list(range(1, 13))


def greedily(model: nn.Module, prompt: Prompt, stops: Sequence[int]) -> list[int]:
    """Token after token from a whole forward pass each: nothing cached, nothing padded."""
    ids = list(prompt.ids)
    for _ in range(prompt.limit):
        with torch.no_grad():
            following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if following in stops:
            break
        ids.append(following)
    return ids[len(prompt.ids) :]


@pytest.mark.parametrize("kind", CONFIGS)
def test_responses_in_batches_are_those_of_plain_greedy_decoding(kind: str, tmp_path: Path) -> None:
    model, data = tiny_model(kind, seed=3), varied(tmp_path, 10)
    tokenizer = data.encoder.tokenizer
    prompts = [row_prompt(data.encoder, row, None, False) for row in data.rows]
    stops = stop_tokens(tokenizer, model, prompts)
    assert set(stops) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    plain = [tokenizer.decode(greedily(model, prompt, stops)).strip() for prompt in prompts]
    assert len(set(plain)) > 3
    for batch_tokens in (1, 150, 100_000):
        assert generate_responses(model, tokenizer, prompts, batch_tokens) == plain


def test_a_model_that_knows_the_rows_scores_one_and_on_other_answers_zero(
    learned: PreTrainedModel, tmp_path: Path
) -> None:
    wrong = [row(f"Capital of {country}?", "Oslo", "wrong", options=["Oslo", answer])
             for country, answer in CAPITALS.items()]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", [*known_rows(), *wrong])
    found = evaluate(learned, tiny_tokenizer(), path, metrics=["loss", "exact", "choice"])
    assert found.families["capitals"]["exact"].mean == found.families["sums"]["exact"].mean == 1
    assert found.families["capitals"]["choice"].mean == 1
    assert found.families["wrong"]["exact"].mean == found.families["wrong"]["choice"].mean == 0
    assert found.examples["prediction"].to_pylist()[-4:] == list(CAPITALS.values())
    assert found.families["capitals"]["loss"].mean < 0.1 < 2 < found.families["wrong"]["loss"].mean
    assert found.left_out == {"loss": 0, "exact": 0, "choice": 3, "choice_normalised": 3}
    assert "choice" not in found.families["sums"]
    assert found.examples["choice"].to_pylist()[4:7] == [None] * 3


def test_sampling_and_penalties_that_a_model_asks_for_do_not_matter_and_its_state_is_left_as_it_was(
    learned: PreTrainedModel, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", known_rows())
    asked = GenerationConfig(do_sample=True, temperature=9.0, repetition_penalty=50.0, max_new_tokens=1)
    before, learned.generation_config = learned.generation_config, asked
    learned.train()
    learned.model.layers[0].eval()
    modes = [module.training for module in learned.modules()]
    try:
        assert evaluate(learned, tiny_tokenizer(), path, metrics=["exact"]).overall["exact"].mean == 1
        assert learned.generation_config.to_dict() == asked.to_dict()
        assert [module.training for module in learned.modules()] == modes
    finally:
        learned.generation_config = before
        learned.eval()


def test_case_is_ignored_only_when_asked_for_and_white_space_at_the_ends_always(
    learned: PreTrainedModel, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", [row("Capital of France?", " PARIS\n", "a")])
    exact = {
        ignored: evaluate(
            learned, tiny_tokenizer(), path, metrics=["exact"], generation=GenerationSettings(ignore_case=ignored)
        ).overall["exact"].mean
        for ignored in (False, True)
    }  # fmt: skip
    assert exact == {False: 0, True: 1}


@given(
    before=st.sampled_from(["", "\n", " \n\n "]), line=st.text("ab ", min_size=1).filter(str.strip),
    after=st.sampled_from(["", "\n", "\nmore", "###", "###\nmore"]),
)  # fmt: skip
def test_a_response_ends_at_its_closing_or_first_line_break(before: str, line: str, after: str) -> None:
    text = "<think></think>" + before + line + after
    whole, ended = Prompt((1,), 9, "<think></think>", "###").cut(text)
    assert (whole, ended) == (before + line + after.partition("###")[0], "###" in after)
    first, ended = Prompt((1,), 9, "<think></think>", "###", one_line=True).cut(text)
    assert (first.strip(), ended) == (line.strip(), bool(after))


THINKING = CHATML.replace(
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content']",
    "{{ '<|im_start|>' + message['role'] + '\n' + "
    "('<think>\n\n</think>\n\n' if message['role'] == 'assistant' else '') + message['content']",
)


@pytest.mark.parametrize(
    ("template", "opening", "closing"),
    [(CHATML, "", "<|im_end|>"), (CHATML_MARKED, "", "<|im_end|>"), (THINKING, "<think>\n\n</think>\n\n", "<|im_end|>"),
     ("{% for m in messages %}{{ m['content'] + '\n\n' }}{% endfor %}", "", "")],
)  # fmt: skip
def test_what_a_template_prints_around_a_response_is_told_from_it(
    template: str, opening: str, closing: str, tmp_path: Path
) -> None:
    data = read_eval_set(write(tmp_path / "rows.jsonl", [row("think", "x", "a")]), tiny_tokenizer(template))
    prompt = row_prompt(data.encoder, data.rows[0], None, False)
    assert (prompt.opening, prompt.closing) == (opening, closing)
    ids, response = data[0]
    whole = data.encoder.tokenizer.decode(ids)
    assert whole.startswith(data.encoder.tokenizer.decode(prompt.ids) + opening + "x" + closing)
    assert data.encoder.tokenizer.decode(ids[response]) == opening + "x" + closing
    assert prompt.cut(opening + "x" + closing + "more")[0] == ("x" if closing else "xmore")
    assert conversation_prompt(data.encoder, [{"role": "user", "content": "think"}], 9, False).ids == prompt.ids


def test_a_template_whose_end_is_no_token_ends_the_response_in_its_text(tmp_path: Path) -> None:
    template = (
        "{% for message in messages %}{{ '[' + message['role'] + ']' + message['content'] }}"
        "{% if message['role'] == 'assistant' %}{{ '[over]' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
    )
    data = read_eval_set(write(tmp_path / "rows.jsonl", known_rows()), tiny_tokenizer(template))
    model = tiny_model("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = example_losses(model, collate(data, range(len(data)))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = evaluate(model, data.encoder.tokenizer, data, metrics=["exact"])
    assert found.overall["exact"].mean == 1


@pytest.mark.parametrize("kind", CONFIGS)
def test_options_after_a_prompt_computed_once_score_as_with_the_whole_prompt_each(kind: str, tmp_path: Path) -> None:
    model, data = tiny_model(kind), varied(tmp_path)
    shared = score_options(model, data.encoder, data.rows, 400)
    whole = score_options(model, data.encoder, data.rows, 1, share_prompt=False)
    assert [choice is None for choice in shared] == [not row.options for row in data.rows]
    for one, other, asked in zip(shared, whole, data.rows, strict=True):
        if one is not None and other is not None:
            np.testing.assert_allclose(one.likelihoods, other.likelihoods, atol=2e-4)
            assert one.answer == len(asked.options or ()) - 1


def test_an_options_likelihood_is_its_loss_times_its_tokens(tmp_path: Path) -> None:
    model, data = tiny_model("gpt2"), varied(tmp_path)
    choices = score_options(model, data.encoder, data.rows, 500)
    right = [choice.likelihoods[choice.answer] for choice in choices if choice]
    losses = evaluate(model, data.encoder.tokenizer, data, metrics=["loss"]).examples["loss"].to_numpy()
    asked = [number for number, found in enumerate(data.rows) if found.options]
    expected = [-losses[number] * data[number][1].sum() for number in asked]
    np.testing.assert_allclose(right, expected, rtol=1e-4)


def test_batches_are_halved_where_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = tiny_model("llama"), varied(tmp_path)
    metrics = ["loss", "exact", "choice"]
    expected = evaluate(model, data.encoder.tokenizer, data, metrics=metrics)
    body, most, refused = model.model.forward, [4], []

    def small_machine(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.get("input_ids", args[0] if args else None)
        if len(given) > most[0]:
            refused.append(len(given))
            raise torch.OutOfMemoryError("too big")
        return body(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", small_machine)
    found = evaluate(model, data.encoder.tokenizer, data, metrics=metrics)
    assert max(refused) > 4
    for metric, score in expected.overall.items():
        assert found.overall[metric].mean == pytest.approx(score.mean, rel=1e-5)
    assert found.examples["prediction"].equals(expected.examples["prediction"])
    most[0] = 0
    with pytest.raises(ModelError, match="one row; lower --max-length"):
        evaluate(model, data.encoder.tokenizer, data, metrics=["loss"])


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200), st.integers(50, 300))
def test_what_did_not_fit_is_not_tried_again(lengths: list[int], room: int, budget: int) -> None:
    """Every row is made once, in batches that fit; memory runs out a few times, and not with each batch."""
    sizes, refused, made = np.array(lengths, np.int32), [], []

    def tokens(batch: list[int]) -> int:
        return len(batch) * int(sizes[batch].max())

    def work(batch: list[int]) -> list[int]:
        if len(batch) > 1 and tokens(batch) > room:
            refused.append(tokens(batch))
            raise torch.OutOfMemoryError("too big")
        return batch

    for batch, same in where_it_fits(plan_batches(range(len(sizes)), sizes, budget), sizes, work):
        assert batch == same
        made += batch
    assert sorted(made) == list(range(len(sizes)))
    assert all(later <= before // 2 for before, later in pairwise(refused))
