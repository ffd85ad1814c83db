"""Batches of similar length under a token budget, and turning rows into padded tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100  # label of a token that is not learnt from (Hugging Face's convention)


class EncodedRows(Protocol):
    """Tokenised rows: what the encoding stage leaves and everything after it reads."""

    lengths: NDArray[np.int32]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """(L,) token ids and (L,) response mask of one row."""
        ...


def plan_batches(rows: Iterable[int], lengths: NDArray[np.int32], batch_tokens: int) -> list[list[int]]:
    """Group rows of similar length so that each padded batch has at most `batch_tokens` tokens.

    Longest first, so that memory peaks in the first batch; equal lengths keep their order, so the plan is a function of
    (rows, lengths, budget) alone. A row longer than the budget is a batch of its own.

    Args:
        rows: indices of the rows to plan.
        lengths: (N,) tokens of every row of the pool.
        batch_tokens: bound on rows × longest row.
    """
    batches: list[list[int]] = []
    for row in sorted(map(int, rows), key=lambda row: (-int(lengths[row]), row)):
        if batches and (len(batches[-1]) + 1) * int(lengths[batches[-1][0]]) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


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
