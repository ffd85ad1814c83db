"""From a conversation to the tokens that a model goes on from, and from its tokens back to the response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from pursuit.encoding import Encoder
from pursuit.encoding.templates import ChatTemplate, render_chat
from pursuit.errors import DataError, ModelError
from pursuit.evaluate.rows import EvalRow
from pursuit.pool import Example, Message
from pursuit.pool.examples import BadRow

MARGIN = 16  # tokens that a response may be longer than the reference [ours]: it may be cut into other tokens
STAND_IN = "\ue002"  # in the place of a reply that is still to come: no template prints it around one


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a response is generated from.

    Attributes:
        ids: tokens of the conversation up to where the response begins.
        limit: tokens that are generated at most.
        opening: what the template prints at the response's beginning and is learnt with it (an empty thought, say).
        closing: what it prints at the response's end: the end-of-turn mark; empty where there is none.
        one_line: the response ends at its first line break.
    """

    ids: tuple[int, ...]
    limit: int
    opening: str
    closing: str
    one_line: bool = False

    def cut(self, text: str) -> tuple[str, bool]:
        """The response in a generated text (without opening, end-of-turn mark and what follows), and whether it ended.

        A response of one line may have line breaks before it.
        """
        text = text.removeprefix(self.opening)
        response, mark, _ = text.partition(self.closing) if self.closing else (text, "", "")
        if not self.one_line:
            return response, bool(mark)
        line, end, _ = response.lstrip().partition("\n")
        return line, bool(mark or end)


def row_prompt(encoder: Encoder, row: EvalRow, max_new_tokens: int | None, first_line: bool) -> Prompt:
    """The prompt of a row whose last assistant turn is to be generated.

    Its tokens are those of the prompt's text alone, as one who asks the model has nothing else; where the template lets
    the response begin within a token, they can differ from the training's by that token.

    Args:
        encoder: with the chat template.
        row: with a prompt.
        max_new_tokens: None for the reference's tokens and `MARGIN` more.
        first_line: end the response at its first line break, where the reference is a single line.

    Raises:
        DataError: the template refuses the conversation.
    """
    try:
        parts = _split(_template(encoder), row.prompt or ())
    except BadRow as error:
        raise DataError(str(error), path=row.example.path, line=row.example.line) from error
    reference = _ids(encoder.tokenizer, parts.opening + row.reference + parts.closing)
    one_line = first_line and "\n" not in row.reference.strip()
    return _prompt(encoder, parts, max_new_tokens or len(reference) + MARGIN, one_line)


def conversation_prompt(
    encoder: Encoder, turns: Sequence[Mapping[str, Any]], max_new_tokens: int, first_line: bool
) -> Prompt:
    """The prompt of a conversation that has no reference.

    Raises:
        DataError: the template refuses the conversation.
    """
    messages = [Message(turn["role"], turn["content"]) for turn in turns]
    try:
        parts = _split(_template(encoder), messages)
    except BadRow as error:
        raise DataError(str(error)) from error
    return _prompt(encoder, parts, max_new_tokens, first_line)


def stop_tokens(tokenizer: PreTrainedTokenizerBase, model: Any, prompts: Sequence[Prompt]) -> list[int]:
    """Tokens that end a response: the tokenizer's and the model's end of text, and end-of-turn marks of one token."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    for closing in {prompt.closing for prompt in prompts}:
        ids = _ids(tokenizer, closing)
        if len(ids) == 1 and ids[0] in special:
            found.add(ids[0])
    return sorted(token for token in found if token is not None)


def with_reply(row: EvalRow, reply: str) -> Example:
    """The row as an example that ends with another reply."""
    return replace(row.example, messages=(*(row.prompt or ()), Message("assistant", reply)))


class _Parts(NamedTuple):
    """What the template prints around a response: the conversation before it, and what is learnt with it."""

    prompt: str
    opening: str
    closing: str


def _split(template: ChatTemplate, prompt: Sequence[Message]) -> _Parts:
    text, spans = render_chat(template, [*prompt, Message("assistant", STAND_IN)], [len(prompt)])
    start, end = spans[0]
    opening, _, closing = text[start:end].partition(STAND_IN)
    return _Parts(text[:start], opening, closing)


def _prompt(encoder: Encoder, parts: _Parts, limit: int, one_line: bool) -> Prompt:
    return Prompt(_ids(encoder.tokenizer, parts.prompt), limit, parts.opening, parts.closing, one_line)


def _template(encoder: Encoder) -> ChatTemplate:
    if encoder.template is None:
        raise ModelError(
            "the tokenizer has no chat template. Give one with --chat-template: 'plain' (for base models), 'chatml', "
            "or a jinja file."
        )
    return encoder.template


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
