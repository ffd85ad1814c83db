"""Batches of similar length under a token budget, and turning rows into padded tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pursuit.devices import free_cached_memory, out_of_memory
from pursuit.errors import ModelError

Result = TypeVar("Result")
IGNORED = -100  # label of a token that is not learnt from (Hugging Face's convention)
BATCH_TOKENS, BATCH_TOKENS_OF_A_GPU = 2048, 16384
FIXED_SHARE = 1 / 8  # what a batch costs whatever is in it, as a share of a full one [ours]


class EncodedRows(Protocol):
    """Tokenised rows: what the encoding stage leaves and everything after it reads."""

    lengths: NDArray[np.int32]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """(L,) token ids and (L,) response mask of one row."""
        ...


def usual_batch_tokens(device: torch.device) -> int:
    """Padded tokens at once where nobody says how many [ours]: a small batch leaves a GPU waiting for its next call."""
    return BATCH_TOKENS if device.type == "cpu" else BATCH_TOKENS_OF_A_GPU


def plan_batches(rows: Iterable[int], lengths: NDArray[np.int32], batch_tokens: int) -> list[list[int]]:
    """Group rows of similar length so that each padded batch has at most `batch_tokens` tokens.

    Of all ways to cut the rows, sorted by length, it is the one with the fewest padded tokens, where a batch costs
    `FIXED_SHARE` of a full one beside its tokens [ours]: to fill every batch would pad more, and to pad nothing would
    make many small ones. Longest first; equal lengths keep their order, so the plan is a function of (rows, lengths,
    budget) alone. A row longer than the budget is a batch of its own.

    Args:
        rows: indices of the rows to plan.
        lengths: (N,) tokens of every row of the pool.
        batch_tokens: bound on rows × longest row.
    """
    order = sorted(map(int, rows), key=lambda row: (-int(lengths[row]), row))
    cuts = _cuts(np.maximum(lengths[order], 1).astype(np.int64), batch_tokens)
    return [order[begin:end] for begin, end in pairwise(cuts)]


def _cuts(lengths: NDArray[np.int64], batch_tokens: int) -> list[int]:
    """Where the batches of (n,) falling lengths begin, and n. By dynamic programming, O(n · rows a batch)."""
    count, fixed = len(lengths), int(FIXED_SHARE * batch_tokens)
    best = np.zeros(count + 1, np.int64)  # what the first i rows cost at least
    before = np.zeros(count + 1, np.int64)  # where the last batch of these begins
    earliest = 0
    for end in range(1, count + 1):
        while earliest < end - 1 and (end - earliest) * lengths[earliest] > batch_tokens:
            earliest += 1
        begins = np.arange(earliest, end)
        costs = best[begins] + (end - begins) * lengths[begins]
        place = int(np.argmin(costs))
        best[end], before[end] = costs[place] + fixed, earliest + place
    cuts = [count]
    while cuts[-1]:
        cuts.append(int(before[cuts[-1]]))
    return cuts[::-1]


def where_it_fits(
    batches: Iterable[list[int]], lengths: NDArray[np.int32], work: Callable[[list[int]], Result]
) -> Iterator[tuple[list[int], Result]]:
    """(batch, work(batch)) of every batch; where memory runs out, it and what comes after it in batches of half its
    padded tokens.

    Raises:
        ModelError: it does not suffice for one row.
    """
    pending = list(batches)[::-1]
    most: int | None = None
    while pending:
        batch = pending.pop()
        if most is not None and len(parts := plan_batches(batch, lengths, most)) > 1:
            pending += parts[::-1]
            continue
        try:
            made = work(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(batch) == 1:
                raise ModelError("memory does not suffice for one row; lower --max-length.") from error
            most = len(batch) // 2 * int(lengths[batch].max())
            pending.append(batch)
            made = None
        if made is None:
            free_cached_memory()  # when the error, and what it holds, is gone
        else:
            yield batch, made


def collate(encoded: EncodedRows, rows: Iterable[int], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Pad rows on the right: `input_ids`, `attention_mask` and `labels`, each (B, longest) int64.

    Padding repeats token 0, is masked out of attention, and is never a label.
    """
    examples = [encoded[row] for row in rows]
    longest = max(len(ids) for ids, _ in examples)
    shape = (len(examples), longest)
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORED, np.int64)
    for place, (tokens, response) in enumerate(examples):
        length = len(tokens)
        ids[place, :length], mask[place, :length] = tokens, 1
        labels[place, :length] = np.where(response, tokens, IGNORED)
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def labelled(batch: Mapping[str, Tensor]) -> int:
    """How many tokens the loss is a mean over: the first has nothing before it to be predicted from."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())
