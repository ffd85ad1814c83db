"""The response mask covers the assistant's turns and nothing else, for every way a template can be written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from pursuit.encoding import Encoded, Encoder, render_tokens
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
