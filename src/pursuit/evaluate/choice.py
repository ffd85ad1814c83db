"""Multiple choice: which of a row's options the model finds most likely as the response."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pursuit.batches import IGNORED, collate, plan_batches, where_it_fits
from pursuit.encoding import Encoded, Encoder
from pursuit.errors import DataError
from pursuit.evaluate.prompts import with_reply
from pursuit.evaluate.rows import EvalRow
from pursuit.gradients.losses import token_losses
from pursuit.gradients.split import forward_arguments
from pursuit.pool import Example
from pursuit.progress import progress


@dataclass(frozen=True, slots=True)
class Choice:
    """The log-likelihood of each option of one row.

    Attributes:
        likelihoods: (options,) sum over the option's tokens, in nats, with the end-of-turn mark [ours]: so that "no"
            is not credited with the beginning of "not at all".
        lengths: (options,) UTF-8 bytes of the option.
        answer: the right option's position.
    """

    likelihoods: NDArray[np.float64]
    lengths: NDArray[np.int64]
    answer: int

    @property
    def chosen(self) -> int:
        """The most likely option; the first of equals."""
        return int(np.argmax(self.likelihoods))

    @property
    def chosen_normalised(self) -> int:
        """The option most likely a byte, as lm-eval's acc_norm: long options are not put at a disadvantage."""
        return int(np.argmax(self.likelihoods / self.lengths))


@dataclass(frozen=True, slots=True)
class _Options:
    """One row's options as tokens; all begin with the same `shared` tokens."""

    encoded: list[Encoded]
    shared: int

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def longest(self) -> int:
        return max(len(option.input_ids) for option in self.encoded)


def score_options(
    model: nn.Module, encoder: Encoder, rows: Sequence[EvalRow], batch_tokens: int, share_prompt: bool = True
) -> list[Choice | None]:
    """(N) log-likelihoods of each row's options; None for rows without.

    The prompt is computed once for all options of a row, where the model's cache allows it.

    Args:
        model: a causal language model.
        encoder: with the chat template and the truncation.
        rows: to be scored; each option is put in the place of the last assistant turn.
        batch_tokens: bound on the padded tokens in memory at once.
        share_prompt: False computes each option with its whole prompt.

    Raises:
        DataError: an option does not fit into the encoder's max_length, or the template refuses it.
    """
    asked = [place for place, row in enumerate(rows) if row.options]
    replies = [[with_reply(rows[place], option) for option in rows[place].options or ()] for place in asked]
    found: list[Choice | None] = [None] * len(rows)
    for place, likelihoods in zip(
        asked, option_likelihoods(model, encoder, replies, batch_tokens, share_prompt), strict=True
    ):
        row = rows[place]
        lengths = np.array([len(option.strip().encode()) for option in row.options or ()])
        found[place] = Choice(likelihoods, lengths, row.answer or 0)
    return found


def option_likelihoods(
    model: nn.Module, encoder: Encoder, asked: Sequence[Sequence[Example]], batch_tokens: int,
    share_prompt: bool = True, description: str | None = "options",
) -> list[NDArray[np.float64]]:  # fmt: skip
    """For each question (options,) log-likelihoods of the last assistant turns of its conversations.

    Args:
        model: a causal language model.
        encoder: with the chat template and the truncation.
        asked: the conversations of each question: the same turns, but for the last one.
        batch_tokens: bound on the padded tokens in memory at once; a single question can be larger.
        share_prompt: as for `score_options`.
        description: of the progress; None shows none.

    Raises:
        DataError: an option does not fit into the encoder's max_length, or the template refuses it.
    """
    options = _encode(encoder, asked)
    sizes = np.array([len(option) * option.longest for option in options], dtype=np.int32)
    found: list[NDArray[np.float64]] = [np.empty(0)] * len(asked)
    with torch.inference_mode(), progress(description, len(asked)) as advance:
        planned = plan_batches(range(len(asked)), sizes, batch_tokens)
        for batch, scores in where_it_fits(
            planned, sizes, lambda items: list(_score(model, [options[item] for item in items], share_prompt))
        ):
            for item, likelihoods in zip(batch, scores, strict=True):
                found[item] = likelihoods
            advance(len(batch))
    return found


def _encode(encoder: Encoder, asked: Sequence[Sequence[Example]]) -> list[_Options]:
    last = Encoder(encoder.tokenizer, max_length=encoder.max_length, train_on="last")
    last.template = encoder.template
    found = []
    for replies in asked:
        encoded = []
        for example, outcome in zip(replies, last.encode_batch(replies), strict=True):
            if isinstance(outcome, DataError):
                raise outcome
            if outcome.truncated:
                option = example.messages[-1].content if example.messages else ""
                reason = f"its option {option!r} does not fit into {encoder.max_length:,} tokens (--max-length)."
                raise DataError(reason, path=example.path, line=example.line)
            encoded.append(outcome)
        found.append(_Options(encoded, _shared(encoded)))
    return found


def _shared(encoded: Sequence[Encoded]) -> int:
    """How many first tokens all options have in common, up to the one that predicts a response's first token."""
    limit = min(int(np.argmax(option.response)) - 1 for option in encoded)
    first = encoded[0].input_ids[:limit]
    for option in encoded[1:]:
        differing = np.flatnonzero(first != option.input_ids[: len(first)])
        first = first[: differing[0]] if len(differing) else first
    return len(first)


def _score(model: nn.Module, options: Sequence[_Options], share_prompt: bool) -> Iterable[NDArray[np.float64]]:
    """(options,) log-likelihoods of each row."""
    accepted = forward_arguments(model)
    possible = share_prompt and "past_key_values" in accepted and all(option.shared > 0 for option in options)
    scores = _with_shared_prompts(model, options, accepted) if possible else None
    if scores is None:
        scores = _with_whole_prompts(model, options)
    ends = np.cumsum([len(option) for option in options])
    return np.split(scores, ends[:-1])


def _with_whole_prompts(model: nn.Module, options: Sequence[_Options]) -> NDArray[np.float64]:
    """(all options,) each computed from its first token on."""
    rows = _Rows([option for row in options for option in row.encoded])
    device = next(model.parameters()).device
    losses, labelled = token_losses(model, collate(rows, range(len(rows)), device))
    spread = torch.zeros(labelled.shape, device=device).masked_scatter(labelled, losses)
    return -spread.cpu().double().sum(dim=1).numpy()


class _Rows:
    """Encoded examples as `EncodedRows`."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self.rows = rows
        self.lengths = np.array([len(row.input_ids) for row in rows], dtype=np.int32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        return self.rows[index].input_ids, self.rows[index].response


def _with_shared_prompts(
    model: nn.Module, options: Sequence[_Options], accepted: set[str]
) -> NDArray[np.float64] | None:
    """As `_with_whole_prompts`, the shared tokens computed once a row; None where the cache cannot be spread."""
    device = next(model.parameters()).device
    prefixes = [row.encoded[0].input_ids[: row.shared] for row in options]
    ids, mask = _padded(prefixes, left=True, device=device)  # (R, P)
    arguments: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    cache = model(
        input_ids=ids, attention_mask=mask, use_cache=True, **_positions(mask, accepted), **arguments
    ).past_key_values  # fmt: skip
    layers = getattr(cache, "layers", [None])
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return None
    owner = torch.tensor([place for place, row in enumerate(options) for _ in row.encoded], device=device)
    cache.batch_select_indices(owner)
    tails = [(row.shared, option) for row in options for option in row.encoded]
    tail, tail_mask = _padded([option.input_ids[start:] for start, option in tails], left=False, device=device)
    labels = _labels(tails, tail.shape[1]).to(device)  # (O, S)
    whole = torch.cat([mask[owner], tail_mask], dim=1)  # (O, P + S)
    logits = model(
        input_ids=tail, attention_mask=whole, past_key_values=cache, use_cache=True,
        **{name: value[:, mask.shape[1] :] for name, value in _positions(whole, accepted).items()},
    ).logits  # fmt: skip
    losses = F.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )
    return -losses.cpu().double().sum(dim=1).numpy()


def _labels(tails: Sequence[tuple[int, Encoded]], length: int) -> Tensor:
    labels = np.full((len(tails), length), IGNORED, np.int64)
    for place, (start, option) in enumerate(tails):
        ids, response = option.input_ids[start:], option.response[start:]
        labels[place, : len(ids)] = np.where(response, ids, IGNORED)
    return torch.from_numpy(labels)


def _padded(rows: Sequence[NDArray[np.int32]], *, left: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """(rows, longest) ids and mask."""
    longest = max(map(len, rows))
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        where = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[place, where], mask[place, where] = row, 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _positions(mask: Tensor, accepted: set[str]) -> dict[str, Tensor]:
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if "position_ids" in accepted else {}
