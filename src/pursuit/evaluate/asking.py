"""The model as a player gets it: asked for replies, or for the likeliest of some options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pursuit.encoding import Encoder
from pursuit.errors import DataError
from pursuit.evaluate.choice import option_likelihoods
from pursuit.evaluate.generate import GenerationSettings, generate_responses
from pursuit.evaluate.prompts import conversation_prompt
from pursuit.pool import Example, Message

PLAYED_TOKENS = 64  # of a reply that has no reference to take its length from, if nothing else is said
Conversation = Sequence[Mapping[str, Any]]  # turns: {"role": …, "content": …}


class Respond:
    """A model to be asked; `respond(conversations)` are its replies.

    Args:
        model: a causal language model.
        encoder: with its tokenizer and chat template.
        settings: of replies.
        batch_tokens: bound on the padded tokens in memory at once.
    """

    def __init__(self, model: nn.Module, encoder: Encoder, settings: GenerationSettings, batch_tokens: int) -> None:
        self.model, self.encoder, self.settings, self.batch_tokens = model, encoder, settings, batch_tokens

    def __call__(self, conversations: Sequence[Conversation]) -> list[str]:
        """A greedy reply to each conversation, of `max_new_tokens` (64 if nothing is said) at most.

        Raises:
            DataError: the template refuses a conversation.
        """
        limit = self.settings.max_new_tokens or PLAYED_TOKENS
        prompts = [conversation_prompt(self.encoder, turns, limit, self.settings.first_line) for turns in conversations]
        return generate_responses(self.model, self.encoder.tokenizer, prompts, self.batch_tokens, description=None)

    def choose(self, conversations: Sequence[Conversation], options: Sequence[Sequence[str]]) -> list[int]:
        """Position of the likeliest of its options as the reply to each conversation; the first of equals.

        Likelihoods are of whole replies with the end-of-turn mark, as in the metric `choice`.

        Args:
            conversations: what is to be replied to.
            options: at least one for each conversation.

        Raises:
            DataError: a conversation without options, one that the template refuses, or an option that does not fit
                into the model's length.
        """
        asked = [_replies(turns, texts) for turns, texts in zip(conversations, options, strict=True)]
        found = option_likelihoods(self.model, self.encoder, asked, self.batch_tokens, description=None)
        return [int(likelihoods.argmax()) for likelihoods in found]


def _replies(turns: Conversation, options: Sequence[str]) -> list[Example]:
    if not options:
        raise DataError("a player asks for a choice among no options; at least one is needed.")
    before = tuple(Message(turn["role"], turn["content"]) for turn in turns)
    return [
        Example(0, "", "asked by a player", 1, (*before, Message("assistant", option)), None, b"") for option in options
    ]
