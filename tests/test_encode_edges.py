"""Where a sequence begins and ends: beginning-of-text marks, truncation, tokens across the response's edge, batches."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from pursuit.encoding import Encoded, Encoder, render_tokens
from pursuit.errors import DataError, SettingsError
from test_encode_masks import (
    CONVERSATION,
    HEADERS,
    LLAMA,
    Pieces,
    Turn,
    chatml,
    encode,
    example_of,
    expected,
    headers,
    merging_tokenizer,
    text_of,
)
from tiny import CHATML, CHATML_MARKED, tiny_tokenizer


def with_bos(template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer that puts its BOS before every text, as Llama's and Gemma's do."""
    tokenizer = tiny_tokenizer(template)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize(("template", "choice", "count"), [
    (LLAMA, None, 1), (CHATML, None, 0), (None, "plain", 1), (None, "chatml", 1),
])  # fmt: skip
def test_there_is_never_a_second_bos(template: str | None, choice: str | None, count: int) -> None:
    tokenizer = with_bos(template)
    encoded = Encoder(tokenizer, chat_template=choice).encode(example_of(CONVERSATION))
    assert encoded.input_ids.tolist().count(tokenizer.bos_token_id) == count
    assert encoded.input_ids.tolist()[:count] == [tokenizer.bos_token_id] * count


@pytest.mark.parametrize("text", ["The capital of France", "<s>The capital of France", "The capital of France</s>"])
def test_plain_text_has_one_bos_and_one_eos_and_is_response_from_its_second_token_on(text: str) -> None:
    tokenizer = with_bos(None)
    encoded = Encoder(tokenizer).encode(text_of(text))
    middle = tokenizer("The capital of France", add_special_tokens=False)["input_ids"]
    assert encoded.input_ids.tolist() == [tokenizer.bos_token_id, *middle, tokenizer.eos_token_id]
    assert encoded.response.tolist() == [False] + [True] * (len(middle) + 1)
    assert encoded.prompt_hash is None


def test_the_first_token_is_never_a_label() -> None:
    encoded = Encoder(tiny_tokenizer(None)).encode(text_of("The capital"))
    assert not encoded.response[0]
    assert encoded.response[1:].all()


def test_truncation_keeps_the_first_tokens_and_says_so() -> None:
    whole = encode(CHATML, None, CONVERSATION)
    cut = encode(CHATML, None, CONVERSATION, max_length=60)
    assert whole.full_length > 60
    assert cut.input_ids.tolist() == whole.input_ids.tolist()[:60]
    assert cut.response.tolist() == whole.response.tolist()[:60]
    assert (cut.full_length, cut.truncated) == (whole.full_length, True)
    assert cut.text_hash == whole.text_hash


def test_a_response_that_is_cut_off_wholly_is_refused_with_the_length_that_is_needed() -> None:
    whole = encode(CHATML, None, CONVERSATION)
    needed = int(np.flatnonzero(whole.response)[0]) + 1
    message = rf"--max-length {whole.full_length} would hold the whole row, at least {needed} is needed"
    with pytest.raises(DataError, match=message) as caught:
        encode(CHATML, None, CONVERSATION, max_length=needed - 1)
    assert caught.value.line == 7
    assert encode(CHATML, None, CONVERSATION, max_length=needed).response.sum() == 1


def test_lengths_and_choices_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingsError, match="max_length: 1 is too small"):
        Encoder(tiny_tokenizer(), max_length=1)
    with pytest.raises(SettingsError, match="train_on: 'first' is not accepted; use 'all' or 'last'"):
        Encoder(tiny_tokenizer(), train_on="first")  # type: ignore[arg-type]


def test_a_token_that_straddles_the_responses_edge_is_response_and_counted() -> None:
    tokenizer = merging_tokenizer(HEADERS)
    encoded = Encoder(tokenizer).encode(example_of([("user", "x"), ("assistant", "Paris\n")]))
    shown = render_tokens(tokenizer, encoded.input_ids, encoded.response)
    assert shown == [("### user:\nx\n\n### assistant:\n", False), ("Paris\n\n", True), ("\n", False)]
    assert encoded.straddling == 1
    encoded = Encoder(tokenizer).encode(example_of([("user", "x"), ("assistant", "\n\nParis")]))
    shown = render_tokens(tokenizer, encoded.input_ids, encoded.response)
    assert shown == [("### user:\nx\n\n### assistant:", False), ("\n\n\nParis", True), ("\n\n", False)]
    assert encoded.straddling == 1


def test_trimmed_offsets_of_white_space_tokens_do_not_lose_them() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    turns: list[Turn] = [("user", "a  "), ("assistant", "  b \n\n\n c  "), ("user", "\n\n"), ("assistant", "d")]
    encoded = Encoder(tokenizer).encode(example_of(turns))
    assert encoded.response.tolist() == expected(tiny_tokenizer(), chatml(turns))[1]


def test_a_slow_tokenizer_without_offsets_gives_the_same_kind_of_mask() -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0)
    assert not tokenizer.is_fast
    tokenizer.chat_template = HEADERS
    encoded = Encoder(tokenizer).encode(example_of(CONVERSATION))
    flags = [flag for text, flag in headers(CONVERSATION) for _ in text.encode()]
    assert encoded.response.tolist() == flags


def test_a_batch_gives_what_one_at_a_time_gives_and_errors_in_their_places() -> None:
    encoder = Encoder(tiny_tokenizer(), max_length=40)
    long_prompt: list[Turn] = [("user", "x" * 100), ("assistant", "y")]
    examples = [example_of(CONVERSATION[1:3]), text_of("Rome"), example_of(long_prompt), text_of("Paris")]
    batch = encoder.encode_batch(examples)
    assert isinstance(batch[2], DataError)
    for place in (0, 1, 3):
        one, other = batch[place], encoder.encode(examples[place])
        assert isinstance(one, Encoded)
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.response.tolist() == other.response.tolist()


def test_hashes_are_those_of_the_text_and_of_the_prompt() -> None:
    question: list[Turn] = [("user", "What is 12 + 30?")]
    first = encode(CHATML, None, [*question, ("assistant", "42")])
    spaced = encode(CHATML, None, [("user", "What  is 12 + 30?"), ("assistant", "42")])
    other = encode(CHATML, None, [*question, ("assistant", "43")])
    assert first.text_hash == spaced.text_hash != other.text_hash
    assert first.prompt_hash == spaced.prompt_hash == other.prompt_hash


def test_render_tokens_gives_the_text_in_segments() -> None:
    tokenizer = tiny_tokenizer()
    encoded = encode(CHATML, None, CONVERSATION)
    merged: Pieces = []
    for text, flag in chatml(CONVERSATION):
        merged = [*merged[:-1], (merged[-1][0] + text, flag)] if merged and merged[-1][1] == flag else [
            *merged, (text, flag)]  # fmt: skip
    assert render_tokens(tokenizer, encoded.input_ids, encoded.response) == merged
    assert render_tokens(tokenizer, [], []) == []


def test_settings_tell_apart_what_changes_the_tokens() -> None:
    base = Encoder(tiny_tokenizer()).settings()
    assert Encoder(tiny_tokenizer()).settings() == base
    used = Encoder(tiny_tokenizer())
    used.tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert used.settings() == base
    others = [Encoder(tiny_tokenizer(CHATML_MARKED)), Encoder(tiny_tokenizer(), max_length=9),
              Encoder(tiny_tokenizer(), train_on="last"), Encoder(with_bos(CHATML))]  # fmt: skip
    assert len({json.dumps(encoder.settings()) for encoder in others} | {json.dumps(base)}) == 5
