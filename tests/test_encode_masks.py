"""The response mask covers the assistant's turns and nothing else, for every way a template can be written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from pursuit.encoding import Encoded, Encoder
from pursuit.errors import DataError, ModelError, SettingsError
from pursuit.pool import Example, Message
from tiny import CHATML, CHATML_MARKED, tiny_tokenizer

Turn = tuple[str, str]
Pieces = list[tuple[str, bool]]

LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '<|im_end|>\n\n' + message['content'] | trim + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_end|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)
HEADERS = (
    "{% for message in messages %}{{ '### ' + message['role'] + ':\n' + message['content'] + '\n\n' }}{% endfor %}"
)
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETFUL = CHATML.replace("in messages %}", "in messages[-2:] %}", 1)
STRIPPING = CHATML.replace(
    "message['content']", "(message['content'] if loop.last else message['content'].split('</think>')[-1])", 1
)


def chatml(turns: list[Turn]) -> Pieces:
    pieces: Pieces = []
    for role, content in turns:
        pieces += [(f"<|im_start|>{role}\n", False), (f"{content}<|im_end|>", role == "assistant"), ("\n", False)]
    return pieces


def llama(turns: list[Turn]) -> Pieces:
    pieces: Pieces = [("<s>", False)]
    for role, content in turns:
        pieces += [(f"<|im_start|>{role}<|im_end|>\n\n", False), (f"{content.strip()}</s>", role == "assistant")]
    return pieces


def mistral(turns: list[Turn]) -> Pieces:
    pieces: Pieces = [("<s>", False)]
    for role, content in turns:
        pieces.append((f" {content}</s>", True) if role == "assistant" else (f"[INST] {content} [/INST]", False))
    return pieces


def headers(turns: list[Turn]) -> Pieces:
    pieces: Pieces = []
    for role, content in turns:
        pieces += [(f"### {role}:\n", False), (content, role == "assistant"), ("\n\n", False)]
    return pieces


def thinking(turns: list[Turn]) -> Pieces:
    pieces = chatml(turns)
    content, is_response = pieces[-2]
    return [*pieces[:-2], (f"<think>\n\n</think>\n\n{content}", is_response), pieces[-1]]


def plain(turns: list[Turn]) -> Pieces:
    pieces: Pieces = []
    for role, content in turns:
        pieces += [(f"{content}</s>", True) if role == "assistant" else (content, False), ("\n", False)]
    return pieces[:-1]


TEMPLATES: dict[str, tuple[str | None, str | None, Callable[[list[Turn]], Pieces]]] = {
    "chatml without marks": (CHATML, None, chatml),
    "chatml with marks": (CHATML_MARKED, None, chatml),
    "built-in chatml": (None, "chatml", chatml),
    "built-in plain": (None, "plain", plain),
    "BOS in the template, contents trimmed": (LLAMA, None, llama),
    "no generation prompt and none needed": (MISTRAL, None, mistral),
    "generation prompt ignored": (HEADERS, None, headers),
    "thoughts opened in the last turn": (THINKING, None, thinking),
}


def merging_tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """One that merges line breaks with each other and with spaces, so that tokens straddle the edges of turns."""
    specification = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    for left, right in (("Ċ", "Ċ"), ("Ċ", "Ġ"), ("Ġ", "Ġ"), ("Ġ", "Ċ")):
        specification["model"]["vocab"].setdefault(left + right, len(specification["model"]["vocab"]))
        specification["model"]["merges"].append([left, right])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(specification)), **special)
    tokenizer.chat_template = template
    return tokenizer


def example_of(turns: list[Turn]) -> Example:
    return Example(0, "s", "a.jsonl", 7, tuple(Message(role, content) for role, content in turns), None, b"{}")


def text_of(text: str) -> Example:
    return Example(0, "s", "a.jsonl", 7, None, text, b"{}")


def expected(tokenizer: PreTrainedTokenizerFast, pieces: Pieces) -> tuple[list[int], list[bool]]:
    """Ids of the whole text, and by counting bytes: whether a token holds a byte of a response."""
    ids = tokenizer("".join(text for text, _ in pieces), add_special_tokens=False)["input_ids"]
    is_response = [flag for text, flag in pieces for _ in text.encode()]
    flags, position = [], 0
    special = set(tokenizer.all_special_tokens)
    for token in tokenizer.convert_ids_to_tokens(ids):
        size = len(token)  # an ordinary token has one character a byte; special ones are ASCII
        assert token in special or set(token) <= set(ByteLevel.alphabet())
        flags.append(any(is_response[position : position + size]))
        position += size
    assert position == len(is_response)
    return ids, [False, *flags[1:]]


def encode(template: str | None, choice: str | None, turns: list[Turn], **options: object) -> Encoded:
    return Encoder(tiny_tokenizer(template), chat_template=choice, **options).encode(example_of(turns))  # type: ignore


CONVERSATION: list[Turn] = [
    ("system", "Be brief."), ("user", "What is 12 + 30?"), ("assistant", "The answer is 42."),
    ("user", "And the capital?"), ("assistant", "Paris, and Rome.\nThe sea 🌊!"),
]  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", [CONVERSATION[1:3], CONVERSATION], ids=["one turn", "several turns"])
def test_ids_and_mask_are_those_of_the_text_written_by_hand(name: str, turns: list[Turn]) -> None:
    template, choice, pieces = TEMPLATES[name]
    encoded = encode(template, choice, turns)
    ids, flags = expected(tiny_tokenizer(), pieces(turns))
    assert encoded.input_ids.tolist() == ids
    assert encoded.response.tolist() == flags
    assert (encoded.full_length, encoded.truncated) == (len(ids), False)
    assert encoded.input_ids.dtype == np.int32


edges = st.text("\n ", max_size=3)
inner = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n \t"), max_size=12)
words = st.tuples(edges, inner, edges).map("".join)
replies = words.filter(lambda text: bool(text.strip()) and "\ue000" not in text)


@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    opening=st.lists(st.tuples(st.just("system"), words), max_size=1),
    exchanges=st.lists(st.tuples(st.tuples(st.just("user"), words), st.tuples(st.just("assistant"), replies)),
                       min_size=1, max_size=4),
    afterwards=st.lists(st.tuples(st.just("user"), words), max_size=1),
)  # fmt: skip
def test_the_mask_covers_exactly_the_assistant_texts_of_any_conversation(
    name: str, opening: list[Turn], exchanges: list[tuple[Turn, Turn]], afterwards: list[Turn]
) -> None:
    template, choice, pieces = TEMPLATES[name]
    turns = opening + [turn for exchange in exchanges for turn in exchange]
    encoder = Encoder(merging_tokenizer(template), chat_template=choice)
    encoded = encoder.encode(example_of(turns + afterwards))  # turns after the last assistant's are left out
    ids, flags = expected(merging_tokenizer(None), pieces(turns))
    assert encoded.input_ids.tolist() == ids
    assert encoded.response.tolist() == flags


@pytest.mark.parametrize("name", TEMPLATES)
def test_train_on_last_marks_the_last_turn_only(name: str) -> None:
    template, choice, pieces = TEMPLATES[name]
    every = pieces(CONVERSATION)
    last = max(place for place, (_, is_response) in enumerate(every) if is_response)
    only_last = [(text, place == last) for place, (text, _) in enumerate(every)]
    encoded = encode(template, choice, CONVERSATION, train_on="last")
    assert encoded.response.tolist() == expected(tiny_tokenizer(), only_last)[1]


@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED])
def test_a_turn_that_is_not_to_be_learnt_from_is_not_marked(template: str) -> None:
    messages = [Message(role, content) for role, content in CONVERSATION]
    messages[2] = Message("assistant", messages[2].content, train=False)
    example = Example(0, "s", "a.jsonl", 7, tuple(messages), None, b"{}")
    encoded = Encoder(tiny_tokenizer(template)).encode(example)
    assert encoded.response.tolist() == encode(template, None, CONVERSATION, train_on="last").response.tolist()


def test_generation_marks_give_the_mask_that_transformers_gives() -> None:
    tokenizer = tiny_tokenizer(CHATML_MARKED)
    theirs = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in CONVERSATION],
        return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    ours = encode(CHATML_MARKED, None, CONVERSATION)
    assert ours.input_ids.tolist() == theirs["input_ids"]
    assert ours.response.tolist() == [bool(flag) for flag in theirs["assistant_masks"]]


@pytest.mark.parametrize(("template", "expected_reason"), [
    (FORGETFUL, "does not print turn 3 as it is"),
    (STRIPPING, "changes turn 3 when more turns follow it"),
])  # fmt: skip
def test_a_template_that_rewrites_earlier_turns_is_refused_with_what_to_do(template: str, expected_reason: str) -> None:
    turns = [*CONVERSATION]
    turns[2] = ("assistant", "<think>12 + 30</think>The answer is 42.")
    with pytest.raises(DataError, match=expected_reason) as caught:
        encode(template, None, turns)
    assert str(caught.value).startswith("a.jsonl, line 7: ")
    assert "{% generation %}" in caught.value.reason
    assert "--train-on last" in caught.value.reason


def test_earlier_turns_may_be_rewritten_when_only_the_last_is_learnt_from() -> None:
    turns = [*CONVERSATION]
    turns[2] = ("assistant", "<think>12 + 30</think>The answer is 42.")
    encoded = encode(STRIPPING, None, turns, train_on="last")
    assert encoded.response.tolist() == encode(CHATML, None, CONVERSATION, train_on="last").response.tolist()


def test_a_generation_prompt_that_opens_what_the_conversation_does_not_hold_is_refused() -> None:
    template = CHATML.replace("<|im_start|>assistant\n'", "<|im_start|>assistant\n<think>'")
    with pytest.raises(DataError, match="rewrites earlier turns or the response's opening"):
        encode(template, None, CONVERSATION)


def test_a_template_that_refuses_a_conversation_makes_a_bad_row_with_its_words() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system, please') }}{% endif %}" + CHATML
    with pytest.raises(DataError, match=r"a\.jsonl, line 7: the chat template refuses .*: no system, please"):
        encode(template, None, CONVERSATION)


def test_a_conversation_that_the_assistant_opens_is_marked() -> None:
    turns: list[Turn] = [("assistant", "system"), ("user", "x"), ("assistant", "user")]
    for template in (CHATML, CHATML_MARKED):
        assert encode(template, None, turns).response.tolist() == expected(tiny_tokenizer(), chatml(turns))[1]
    with_default = "{% if messages[0]['role'] != 'system' %}{{ 'assistant system user\n' }}{% endif %}" + CHATML
    pieces: Pieces = [("assistant system user\n", False), *chatml(turns)]
    assert encode(with_default, None, turns).response.tolist() == expected(tiny_tokenizer(), pieces)[1]


def test_without_a_chat_template_a_conversation_is_an_error_that_says_how_to_go_on() -> None:
    with pytest.raises(ModelError, match=r"no chat template.*--chat-template: 'plain'.*'chatml', or a jinja file"):
        encode(None, None, CONVERSATION)
    assert Encoder(tiny_tokenizer(None)).encode(text_of("The capital")).response.any()


def test_a_template_comes_from_a_file_and_a_wrong_choice_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(CHATML)
    from_file = encode(None, str(tmp_path / "own.jinja"), CONVERSATION)
    assert from_file.input_ids.tolist() == encode(CHATML, None, CONVERSATION).input_ids.tolist()
    with pytest.raises(SettingsError, match="'alpaca' is neither a file nor one of plain, chatml"):
        encode(CHATML, "alpaca", CONVERSATION)
    (tmp_path / "broken.jinja").write_text("{% for message in %}")
    with pytest.raises(ModelError, match="not valid jinja: line 1"):
        encode(CHATML, str(tmp_path / "broken.jinja"), CONVERSATION)


def test_a_template_that_prints_the_date_gives_the_same_tokens_every_day() -> None:
    template = "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}\n" + CHATML
    encoded = encode(template, None, CONVERSATION)
    assert tiny_tokenizer().decode(encoded.input_ids).startswith("26 Jul 2024\n<|im_start|>")
