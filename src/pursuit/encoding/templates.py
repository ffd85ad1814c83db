"""Chat templates: choosing one, rendering a conversation, and finding the assistant's part of the rendered text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from pursuit.errors import ModelError, SettingsError
from pursuit.pool.examples import BadRow, Message

BUILT_IN = {
    # prompt and response as they are, a line break between them; the response ends with the end-of-text token
    "plain": (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}"
        "{% if not loop.last or add_generation_prompt %}{{ '\\n' }}{% endif %}{% endfor %}"
    ),
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] }}{{ '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
        "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
}
# Some templates print today's date. Ours: they see one fixed date, so that a row gives the same tokens tomorrow.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}{{ '' }}"
ADVICE = (
    "Choose --train-on last, or a template that marks the assistant's text with "
    "{% generation %} … {% endgeneration %} (--chat-template FILE)."
)
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A template's text, what it may print (special tokens), and how it tells the assistant's part.

    Attributes:
        marked: it has generation marks.
        prompts: `add_generation_prompt` changes what it prints.
    """

    text: str
    special_tokens: dict[str, Any]
    marked: bool
    prompts: bool


def load_template(tokenizer: PreTrainedTokenizerBase, choice: str | Path | None) -> ChatTemplate | None:
    """The tokenizer's own template (None: it may have none), a built-in one by name, or one from a jinja file.

    A template writes its own special tokens, as transformers holds it; the built-in ones write a BOS where the
    tokenizer puts one before plain text.

    Raises:
        SettingsError: `choice` is neither a built-in name nor a file.
        ModelError: the template is not valid jinja.
    """
    if choice is None:
        if tokenizer.chat_template is None:
            return None
        text = tokenizer.get_chat_template()
    elif str(choice) in BUILT_IN:
        text = ("{{ bos_token }}" if adds_bos(tokenizer) else "") + BUILT_IN[str(choice)]
    elif Path(choice).is_file():
        text = Path(choice).read_text(encoding="utf-8")
    else:
        raise SettingsError(
            f"chat_template: {str(choice)!r} is neither a file nor one of {', '.join(BUILT_IN)}; "
            "leave it out to use the tokenizer's own"
        )
    if "strftime_now" in text:
        text = FIXED_DATE + text
    template = ChatTemplate(text, dict(tokenizer.special_tokens_map), bool(_MARKS.search(text)), True)
    return ChatTemplate(text, template.special_tokens, template.marked, _has_generation_prompt(template))


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts its BOS before a text."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def render_chat(template: ChatTemplate, messages: Sequence[Message], wanted: Sequence[int]) -> tuple[str, list[Span]]:
    """Render a conversation and find the assistant turns `wanted` (positions in `messages`) in the text.

    A turn's span starts where the generation prompt ends and holds the end-of-turn token, but not the white space that
    the template puts after it. Generation marks are taken as they are.

    Raises:
        BadRow: the template refuses the conversation, or the assistant's part of it cannot be told for certain.
    """
    if template.marked:
        text, marks = _render(template, messages, marks=True)
        return text, _marked_spans(marks, messages, wanted)
    text, _ = _render(template, messages)
    return text, [_unmarked_span(template, messages, turn, text) for turn in wanted]


def _render(
    template: ChatTemplate, messages: Sequence[Message], *, prompt: bool = False, marks: bool = False
) -> tuple[str, list[Span]]:
    try:
        rendered: Any = render_jinja_template(
            conversations=[[{"role": message.role, "content": message.content} for message in messages]],
            chat_template=template.text,
            add_generation_prompt=prompt,
            return_assistant_tokens_mask=marks,
            **template.special_tokens,
        )
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(f"the chat template is not valid jinja: line {error.lineno}: {error.message}") from error
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        raise BadRow(f"the chat template refuses this conversation: {error}") from error
    texts, indices = rendered
    return str(texts[0]), [(int(start), int(end)) for start, end in indices[0]] if marks else []


def _has_generation_prompt(template: ChatTemplate) -> bool:
    probe = [Message("user", "a")]
    try:
        return _render(template, probe, prompt=True) != _render(template, probe)
    except BadRow:
        return True


def _marked_spans(marks: list[Span], messages: Sequence[Message], wanted: Sequence[int]) -> list[Span]:
    turns = [position for position, message in enumerate(messages) if message.role == "assistant"]
    marks = [(start, end) for start, end in marks if end > start]
    if len(marks) == len(turns):
        return [span for span, turn in zip(marks, turns, strict=True) if turn in set(wanted)]
    if marks and list(wanted) == turns:
        return marks
    raise BadRow(f"the chat template marks {len(marks)} parts as generated, but there are {len(turns)} assistant turns")


def _unmarked_span(template: ChatTemplate, messages: Sequence[Message], turn: int, full: str) -> Span:
    """The span of one turn, from renderings of its beginning and with a placeholder for its content."""
    before, after = _around(template, messages, turn, full)
    upto = messages[: turn + 1]
    as_last = full if len(upto) == len(messages) else _render(template, upto)[0]
    before_last, after_last = (before, after) if as_last is full else _around(template, upto, turn, as_last)
    start, end = len(before), len(full) - len(after)
    if full[start:end] != as_last[len(before_last) : len(as_last) - len(after_last)]:
        raise BadRow(f"the chat template changes turn {turn + 1} when more turns follow it. {ADVICE}")
    closing = after_last.rstrip()
    return _opening(template, messages, turn, full, start), end + (len(closing) if after.startswith(closing) else 0)


def _around(template: ChatTemplate, messages: Sequence[Message], turn: int, full: str) -> tuple[str, str]:
    """What the template prints before and after the content of one turn."""
    placeholder = next(mark for number in itertools.count() if (mark := f"\ue000{number}\ue001") not in full)
    replaced = [*messages[:turn], Message("assistant", placeholder), *messages[turn + 1 :]]
    before, found, after = _render(template, replaced)[0].partition(placeholder)
    whole = found and full.startswith(before) and full.endswith(after) and len(before) + len(after) <= len(full)
    if not whole:
        raise BadRow(f"the chat template does not print turn {turn + 1} as it is. {ADVICE}")
    return before, after


def _opening(template: ChatTemplate, messages: Sequence[Message], turn: int, full: str, content: int) -> int:
    """Where the response starts: after the generation prompt, or at its content where the template has none."""
    if turn == 0:
        return content
    opened, _ = _render(template, messages[:turn], prompt=True)
    if full.startswith(opened) and len(opened) <= content:
        between = full[len(opened) : content]
        return len(opened) if template.prompts or not between.strip() else content
    raise BadRow(
        f"the chat template's generation prompt before turn {turn + 1} is not the beginning of what it prints for the "
        f"whole conversation: it rewrites earlier turns or the response's opening. {ADVICE}"
    )
