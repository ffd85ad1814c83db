"""From a row's fields to a conversation or a text; the format is told by the fields' names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pursuit.errors import SettingsError
from pursuit.pool.examples import BadRow, Message

FIELD_NAMES = ("messages", "prompt", "response", "system", "text", "source")
CHAT_FIELDS = ("messages", "conversations")
OPTIONS = ("options", "choices")
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool", "function": "tool", "function_response": "tool", "observation": "tool",
}  # fmt: skip
WOULD_DO = (
    "'messages' or 'conversations' (a list of turns); 'prompt' with 'completion', 'response' or 'answer'; "
    "'instruction' (and 'input') with 'output'; 'question' with 'answer'; 'text'"
)
HOW_TO_MAP = "If its fields have other names, map them: --fields.prompt request --fields.response reply"


@dataclass(frozen=True, slots=True)
class _Pair:
    """A format of one request and one reply: the request's field, what may stand beside it, and the reply's names."""

    prompt: str
    inputs: tuple[str, ...]
    responses: tuple[str, ...]


PAIRS = (
    _Pair("prompt", (), ("completion", "response", "answer")),
    _Pair("instruction", ("input", "context"), ("output", "response")),
    _Pair("question", (), ("answer",)),
)

Content = tuple[tuple[Message, ...] | None, str | None]


def check_fields(fields: Mapping[str, str] | None) -> dict[str, str]:
    """The mapping from our field names to the user's, or a SettingsError that names a wrong key."""
    unknown = sorted(set(fields or {}) - set(FIELD_NAMES))
    if unknown:
        raise SettingsError(f"fields: unknown name {unknown[0]!r}; accepted are {', '.join(FIELD_NAMES)}")
    return dict(fields or {})


def read_content(record: Mapping[str, Any], fields: Mapping[str, str]) -> Content:
    """The conversation of a row, or its text: exactly one of the two.

    Args:
        record: the row; a field that is null counts as absent.
        fields: our names to the user's; a format whose name is mapped is the only one looked for.

    Raises:
        BadRow: no format fits, or what is there cannot be used.
    """
    chat = [fields["messages"]] if "messages" in fields else CHAT_FIELDS
    text = fields.get("text", "text")
    mapped = {name for name in ("messages", "prompt", "response", "text") if name in fields}
    if not mapped or "messages" in mapped:
        for name in chat:
            if record.get(name) is not None:
                return _conversation(record, _turns(record[name], name), fields), None
    if not mapped or mapped & {"prompt", "response"}:
        for pair in _pairs(fields):
            response = next((name for name in pair.responses if record.get(name) is not None), None)
            if record.get(pair.prompt) is not None and response is not None:
                return _conversation(record, _request_and_reply(record, pair, response), fields), None
    if (not mapped or "text" in mapped) and record.get(text) is not None:
        return None, _plain_text(record[text], text)
    raise BadRow(_no_format(record, fields))


def read_source(record: Mapping[str, Any], field: str) -> str | None:
    """The data set a row says it belongs to, if it says so with a word or a number."""
    value = record.get(field)
    return str(value) if isinstance(value, str | int) and str(value).strip() else None


def _pairs(fields: Mapping[str, str]) -> Sequence[_Pair]:
    if "prompt" in fields:
        every = tuple(dict.fromkeys(name for pair in PAIRS for name in pair.responses))
        return [_Pair(fields["prompt"], (), (fields["response"],) if "response" in fields else every)]
    if "response" in fields:
        return [_Pair(pair.prompt, pair.inputs, (fields["response"],)) for pair in PAIRS]
    return PAIRS


def _no_format(record: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    has = ", ".join(f"{name!r} (null)" if value is None else repr(name) for name, value in record.items())
    found = f"it has {has}" if record else "it has no fields at all"
    missing = [name for ours, name in fields.items() if ours not in ("source", "system") and record.get(name) is None]
    if missing:
        mapped = next(ours for ours, name in fields.items() if name == missing[0])
        return f"missing field {missing[0]!r} (mapped to {mapped}); {found}"
    for pair in PAIRS:
        if record.get(pair.prompt) is not None:
            replies = " or ".join(map(repr, pair.responses))
            return f"missing field: {pair.prompt!r} needs {replies} beside it; {found}. {HOW_TO_MAP}"
    return f"no known format fits this row: {found}. One of these would do: {WOULD_DO}. {HOW_TO_MAP}"


def _plain_text(value: Any, name: str) -> str:
    text = _string(value, f"field {name!r}")
    if not text.strip():
        raise BadRow(f"empty text: field {name!r} holds nothing to learn from")
    return text


def _request_and_reply(record: Mapping[str, Any], pair: _Pair, response: str) -> list[Message]:
    prompt, reply = record[pair.prompt], record[response]
    if isinstance(prompt, list):
        # only the completion is learnt from, as TRL does: earlier assistant turns are part of the prompt
        turns = [Message(turn.role, turn.content, turn.role != "assistant") for turn in _turns(prompt, pair.prompt)]
    else:
        request = _string(prompt, f"field {pair.prompt!r}")
        beside = next((name for name in pair.inputs if record.get(name) is not None), None)
        extra = _string(record[beside], f"field {beside!r}") if beside else ""
        turns = [Message("user", "\n\n".join(part for part in (request, extra) if part.strip()) if extra else request)]
    if isinstance(reply, int) and not isinstance(reply, bool):  # the position of an option, as exams are often kept
        options: list[Any] = next((record[name] for name in OPTIONS if isinstance(record.get(name), list)), [])
        reply = options[reply] if 0 <= reply < len(options) else reply
    if isinstance(reply, list):
        return turns + _turns(reply, response)
    return [*turns, Message("assistant", _string(reply, f"field {response!r}"))]


def _turns(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list):
        raise BadRow(f"wrong type: field {name!r} must be a list of turns, not {_kind(value)}")
    if not value:
        raise BadRow(f"field {name!r} is an empty list")
    return [_turn(turn, f"turn {number} of {name!r}") for number, turn in enumerate(value, start=1)]


def _turn(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(f"wrong type: {where} must be an object with a role and a content, not {_kind(turn)}")
    if turn.get("tool_calls"):
        raise BadRow(f"{where} holds tool calls as structure, which is not supported: write them into its content")
    role_field, content_field = ("from", "value") if turn.get("from") is not None else ("role", "content")
    role, content = turn.get(role_field), turn.get(content_field)
    for field, value in ((role_field, role), (content_field, content)):
        if value is None:
            raise BadRow(f"missing field: {where} has no {field!r}; it has {', '.join(map(repr, turn)) or 'nothing'}")
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise BadRow(f"unknown role {role!r} in {where}; known are {', '.join(ROLES)}")
    return Message(
        known, _string(content, f"{content_field!r} of {where}"), known != "assistant" or turn.get("weight") != 0
    )


def _string(value: Any, where: str) -> str:
    """A text, or a list of text parts joined."""
    if isinstance(value, list):
        value = "".join(_part(part, where) for part in value)
    if not isinstance(value, str):
        raise BadRow(f"wrong type: {where} must be text, not {_kind(value)}")
    if "\0" in value:
        raise BadRow(f"a NUL character in {where}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"half a surrogate pair in {where}: not valid Unicode") from error
    return value


def _part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else _kind(part)
    raise BadRow(f"{where} has a part of kind {kind!r}; only text parts can be used")


def _conversation(record: Mapping[str, Any], turns: list[Message], fields: Mapping[str, str]) -> tuple[Message, ...]:
    if isinstance(record.get("tools"), list) and record["tools"]:
        raise BadRow("field 'tools' holds tool definitions, which are not supported: write them into the system turn")
    system_field = fields.get("system", "system")
    if record.get(system_field) is not None:
        system = _string(record[system_field], f"field {system_field!r}")
        if system.strip() and turns[0].role != "system":
            turns = [Message("system", system), *turns]
        elif system.strip() and turns[0].content != system:
            raise BadRow(f"two different system prompts: field {system_field!r} and the first turn")
    learnt = [(number, turn) for number, turn in enumerate(turns, start=1) if turn.role == "assistant" and turn.train]
    if not learnt:
        raise BadRow("no assistant turn to learn from")
    for number, turn in learnt:
        if not turn.content.strip():
            raise BadRow(f"empty response: turn {number} (assistant) has no text")
    return tuple(turns)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
