"""Greedy responses of a model, in batches: the same texts as one at a time, but for rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from pursuit.batches import plan_batches, where_it_fits
from pursuit.errors import SettingsError
from pursuit.evaluate.prompts import Prompt, stop_tokens
from pursuit.progress import progress


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How responses are generated, always greedily.

    Attributes:
        max_new_tokens: the longest response; None for the reference's tokens and 16 more [ours] (64 for players).
        first_line: a response ends at its first line break, where the reference is a single line.
        ignore_case: exact match does not mind upper and lower case.
    """

    max_new_tokens: int | None = None
    first_line: bool = False
    ignore_case: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise SettingsError(f"max_new_tokens: {self.max_new_tokens} is too small; at least 1 is needed.")

    def match(self, response: str, reference: str) -> bool:
        """Whether they are equal but for white space at both ends, and for case if that is to be ignored."""
        given, wanted = response.strip(), reference.strip()
        return given.casefold() == wanted.casefold() if self.ignore_case else given == wanted


def generate_responses(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], batch_tokens: int,
    description: str | None = "responses",
) -> list[str]:  # fmt: skip
    """(N) responses, without white space at their ends.

    A response ends at the tokenizer's or the model's end of text, at the template's end-of-turn mark, at its first line
    break if asked for, or at its limit. The model's own settings for generation (penalties, sampling) are not used.

    Args:
        model: a causal language model; padding is on the left and masked.
        tokenizer: the model's.
        prompts: what to go on from.
        batch_tokens: bound on rows × (longest prompt + longest response) in memory at once.
        description: of the progress; None shows none.
    """
    stops = stop_tokens(tokenizer, model, prompts)
    responses = [""] * len(prompts)
    with torch.inference_mode(), _plain_generation(model), progress(description, len(prompts)) as advance:
        lengths = np.array([len(prompt.ids) + prompt.limit for prompt in prompts], dtype=np.int32)
        planned = _plan(prompts, lengths, batch_tokens)
        for batch, generated in where_it_fits(
            planned, lengths, lambda rows: _generate(model, tokenizer, [prompts[row] for row in rows], stops)
        ):
            for row, ids in zip(batch, generated, strict=True):
                responses[row] = prompts[row].cut(_decode(tokenizer, ids))[0].strip()
            advance(len(batch))
    return responses


def _plan(prompts: Sequence[Prompt], lengths: NDArray[np.int32], batch_tokens: int) -> list[list[int]]:
    """Batches of prompts whose limits are within a factor of two: a short answer need not wait for a long one."""
    by_limit: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_limit.setdefault(prompt.limit.bit_length(), []).append(row)
    alike = [rows for _, rows in sorted(by_limit.items(), reverse=True)]
    return [batch for rows in alike for batch in plan_batches(rows, lengths, batch_tokens)]


def _generate(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], stops: Sequence[int]
) -> list[list[int]]:
    """Tokens of each response, up to its stop token (left out) or its limit."""
    device = next(model.parameters()).device
    longest = max(len(prompt.ids) for prompt in prompts)
    padding = tokenizer.pad_token_id or 0
    ids = np.full((len(prompts), longest), padding, np.int64)
    mask = np.zeros((len(prompts), longest), np.int64)
    for place, prompt in enumerate(prompts):
        ids[place, longest - len(prompt.ids) :], mask[place, longest - len(prompt.ids) :] = prompt.ids, 1
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max(prompt.limit for prompt in prompts), eos_token_id=list(stops) or None,
        pad_token_id=padding, use_cache=True,
    )  # fmt: skip
    generated = model.generate(  # type: ignore[operator]
        input_ids=torch.from_numpy(ids).to(device), attention_mask=torch.from_numpy(mask).to(device),
        generation_config=config, stopping_criteria=StoppingCriteriaList([_Ended(tokenizer, prompts, longest, stops)]),
    )  # fmt: skip
    return [
        _upto(row[: prompt.limit], stops)
        for row, prompt in zip(generated[:, longest:].tolist(), prompts, strict=True)
    ]  # fmt: skip


class _Ended(StoppingCriteria):
    """Which rows are at their limit, or have an end in their text that is not a token of its own."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], start: int, stops: Sequence[int]
    ) -> None:
        self.tokenizer, self.prompts, self.start = tokenizer, prompts, start
        self.limits = torch.tensor([prompt.limit for prompt in prompts])
        marks = {prompt.closing for prompt in prompts if prompt.closing}
        known = set(tokenizer.convert_ids_to_tokens(list(stops)))
        self.reads_text = any(prompt.one_line for prompt in prompts) or not marks <= known

    def __call__(self, input_ids: Tensor, scores: Any, **unused: Any) -> Tensor:
        ended = self.limits <= input_ids.shape[1] - self.start
        if self.reads_text:
            texts = (_decode(self.tokenizer, ids) for ids in input_ids[:, self.start :].tolist())
            ended |= torch.tensor([prompt.cut(text)[1] for prompt, text in zip(self.prompts, texts, strict=True)])
        return ended.to(input_ids.device)


def _upto(ids: list[int], stops: Sequence[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@contextmanager
def _plain_generation(model: nn.Module) -> Iterator[None]:
    """Greedy means greedy: transformers would fill whatever we leave open from the model's generation_config."""
    owners: list[Any] = [model, *([model.get_base_model()] if isinstance(model, PeftModel) else [])]
    kept = [copy.copy(owner.generation_config) for owner in owners]
    for owner in owners:
        owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for owner, config in zip(owners, kept, strict=True):
            owner.generation_config = config
