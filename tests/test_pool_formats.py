"""Every row format gives the conversation or text it means, and every unusable row is refused for the exact reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pursuit.errors import DataError, SettingsError
from pursuit.pool import Example, Message, Pool
from pursuit.pool.formats import BadRow, read_content

QUESTION = Message("user", "2+2?")
REPLY = Message("assistant", "4")


def pool_of(tmp_path: Path, *rows: Any, **options: Any) -> Pool:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Pool(path, **options)


def only(pool: Pool) -> Example:
    (example,) = pool
    return example


def reason(tmp_path: Path, row: Any, **options: Any) -> str:
    """Why a row is refused; the place is checked here for every case."""
    good = {"prompt": "a", "response": "b", **dict.fromkeys(options.get("fields", {}).values(), "x")}
    with pytest.raises(DataError) as caught:
        list(pool_of(tmp_path, good, "", row, **options))
    assert caught.value.path == str(tmp_path / "rows.jsonl")
    assert caught.value.line == 3
    assert str(caught.value).startswith(f"{tmp_path}/rows.jsonl, line 3: ")
    return caught.value.reason


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
        {"conversations": [{"from": "user", "value": "2+2?"}, {"from": "assistant", "value": "4"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]},
                      {"role": "assistant", "content": "4"}]},
        {"prompt": "2+2?", "completion": "4"},
        {"prompt": "2+2?", "response": "4"},
        {"prompt": "2+2?", "answer": "4"},
        {"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]},
        {"prompt": [{"role": "user", "content": "2+2?"}], "completion": "4"},
        {"instruction": "2+2?", "output": "4"},
        {"instruction": "2+2?", "input": "", "output": "4"},
        {"instruction": "2+2?", "input": None, "output": "4"},
        {"instruction": "2+2?", "context": "", "response": "4"},
        {"question": "2+2?", "answer": "4"},
        {"question": "2+2?", "answer": "4", "prompt": None, "text": "other"},
    ],
)  # fmt: skip
def test_the_formats_of_one_question_all_give_the_same_two_turns(tmp_path: Path, row: dict[str, Any]) -> None:
    example = only(pool_of(tmp_path, row))
    assert example.messages == (QUESTION, REPLY)
    assert example.text is None


def test_a_text_row_is_text(tmp_path: Path) -> None:
    example = only(pool_of(tmp_path, {"text": "Once upon a time."}))
    assert (example.messages, example.text) == (None, "Once upon a time.")


def test_alpaca_input_stands_a_blank_line_below_the_instruction(tmp_path: Path) -> None:
    example = only(pool_of(tmp_path, {"instruction": "Translate.", "input": "Hallo", "output": "Hello"}))
    assert example.messages == (Message("user", "Translate.\n\nHallo"), Message("assistant", "Hello"))


def test_a_system_field_becomes_the_first_turn(tmp_path: Path) -> None:
    example = only(pool_of(tmp_path, {"system": "Be brief.", "prompt": "2+2?", "response": "4"}))
    assert example.messages == (Message("system", "Be brief."), QUESTION, REPLY)


def test_roles_of_tools_are_known_and_kept(tmp_path: Path) -> None:
    turns = [("system", "s"), ("human", "u"), ("function_call", "f()"), ("observation", "7"), ("gpt", "seven")]
    example = only(pool_of(tmp_path, {"conversations": [{"from": role, "value": text} for role, text in turns]}))
    assert example.messages is not None
    assert [turn.role for turn in example.messages] == ["system", "user", "assistant", "tool", "assistant"]


def test_assistant_turns_inside_a_prompt_and_turns_of_weight_zero_are_not_learnt_from(tmp_path: Path) -> None:
    shot = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    with_prompt = {"prompt": [*shot, {"role": "user", "content": "2+2?"}], "completion": "4"}
    weighted = {"messages": [shot[0], {**shot[1], "weight": 0}, {"role": "assistant", "content": "4", "weight": 1}]}
    for example in pool_of(tmp_path, with_prompt, weighted):
        learnt = [turn.content for turn in example.messages or () if turn.role == "assistant" and turn.train]
        assert learnt == ["4"]


def test_a_conversation_may_end_with_the_user(tmp_path: Path) -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    assert len(only(pool_of(tmp_path, {"messages": turns})).messages or ()) == 3


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"q": "2+2?", "a": "4"}, {"prompt": "q", "response": "a"}),
        ({"q": "2+2?", "output": "4", "messages": "noise"}, {"prompt": "q"}),
        ({"instruction": "2+2?", "reply": "4", "output": "other"}, {"response": "reply"}),
        ({"chat": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, {"messages": "chat"}),
    ],
)
def test_fields_of_other_names_are_mapped(tmp_path: Path, row: dict[str, Any], fields: dict[str, str]) -> None:
    assert only(pool_of(tmp_path, row, fields=fields)).messages == (QUESTION, REPLY)


def test_text_and_system_can_be_mapped(tmp_path: Path) -> None:
    assert only(pool_of(tmp_path, {"body": "abc", "prompt": "p"}, fields={"text": "body"})).text == "abc"
    row = {"preamble": "Be brief.", "prompt": "2+2?", "response": "4"}
    mapped = only(pool_of(tmp_path, row, fields={"system": "preamble"}))
    assert (mapped.messages or ())[0] == Message("system", "Be brief.")


def test_an_unknown_name_in_fields_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"unknown name 'promt'; accepted are messages, prompt, response"):
        pool_of(tmp_path, {"text": "a"}, fields={"promt": "q"})


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('{"text": "a" "b"}', "malformed JSON at column 14: Expecting ',' delimiter"),
        ('{"text": "a', "malformed JSON at column 10: Unterminated string"),
        ('{"text": ' + "[" * 100_000, "malformed JSON"),
        ('["text"]', "must be a JSON object with named fields, not a list"),
        ('{"text": "a\0b"}', "a NUL byte at column 12"),
        ('{"text": "a\\u0000b"}', "a NUL character in field 'text'"),
        ('{"text": "a\\ud800b"}', "half a surrogate pair in field 'text'"),
        ({}, "it has no fields at all"),
        ({"body": "x", "label": None}, "it has 'body', 'label' (null). One of these would do: 'messages'"),
        ({"body": "x"}, "map them: --fields.prompt"),
        ({"prompt": "x", "reply": "y"}, "'prompt' needs 'completion' or 'response' or 'answer' beside it"),
        ({"instruction": "x"}, "'instruction' needs 'output' or 'response' beside it"),
        ({"prompt": "x", "response": 4}, "wrong type: field 'response' must be text, not a number"),
        ({"prompt": {"a": 1}, "response": "y"}, "wrong type: field 'prompt' must be text, not an object"),
        ({"text": ["a"]}, "only text parts can be used"),
        ({"text": " \n"}, "empty text"),
        ({"prompt": "x", "response": " "}, "empty response: turn 2 (assistant)"),
        ({"messages": "hello"}, "wrong type: field 'messages' must be a list of turns, not text"),
        ({"messages": []}, "field 'messages' is an empty list"),
        ({"messages": ["hello"]}, "turn 1 of 'messages' must be an object with a role and a content, not text"),
        ({"messages": [{"role": "user"}]}, "missing field: turn 1 of 'messages' has no 'content'; it has 'role'"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "unknown role 'narrator' in turn 1 of 'messages'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn to learn from"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "url": "u"}]}]}, "a part of kind 'image'"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]}, "tool calls"),
        ({"system": "A", "messages": [{"role": "system", "content": "B"}]}, "two different system prompts"),
    ],
)  # fmt: skip
def test_a_bad_row_is_an_error_with_its_file_line_and_reason(tmp_path: Path, row: Any, expected: str) -> None:
    assert expected in reason(tmp_path, row)


def test_a_missing_mapped_field_is_named_with_what_it_is_mapped_to(tmp_path: Path) -> None:
    found = reason(tmp_path, {"prompt": "x", "answer": "y"}, fields={"response": "reply"})
    assert found.startswith("missing field 'reply' (mapped to response); it has 'prompt', 'answer'")


def test_skip_lists_every_bad_row_and_goes_on_with_ordinals_that_count_all_rows(tmp_path: Path) -> None:
    rows = [{"text": "a"}, "{", "", {"text": ""}, {"text": "b"}]
    pool = pool_of(tmp_path, *rows, on_bad_row="skip")
    for _ in range(2):  # a second pass lists them anew, not twice
        assert [(example.row, example.line, example.text) for example in pool] == [(0, 1, "a"), (3, 5, "b")]
        assert [(refusal.row, refusal.line) for refusal in pool.refused] == [(1, 2), (2, 4)]
        assert "malformed JSON" in pool.refused[0].reason
        assert "empty text" in pool.refused[1].reason


def test_a_pool_of_which_no_row_is_usable_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable row: 2 were refused, the first \(.*jsonl, line 1\): malformed"):
        list(pool_of(tmp_path, "{", "}", on_bad_row="skip"))


def test_an_answer_that_is_a_position_is_that_option():
    row = {"prompt": "1 + 1?", "options": ["2", "3"], "answer": 0}
    messages, _ = read_content(row, {})
    assert [message.content for message in messages] == ["1 + 1?", "2"]
    assert read_content({"question": "1 + 1?", "choices": ["3", "2"], "answer": 1}, {})[0][1].content == "2"
    for wrong in (2, -1, True):
        with pytest.raises(BadRow, match="'answer' must be text"):
            read_content({**row, "answer": wrong}, {})
