"""Cutting the rows of one optimizer step into batches that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

IGNORED = -100  # label of tokens that are not learnt from


class EncodedRows(Protocol):
    """Tokenised examples: row i is (input_ids (n,) int32, response (n,) bool)."""

    lengths: Any  # (N,) tokens of each row

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> tuple[np.ndarray, np.ndarray]: ...


def micro_batches(
    encoded: EncodedRows, rows: Sequence[int] | np.ndarray, tokens: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Cut rows into right-padded batches of at most `tokens` padded tokens (one row always fits).

    Longest first, so that rows of like length share a batch and memory runs out at once if it does.

    Yields:
        input_ids (b, n), attention_mask (b, n), labels (b, n; -100 where nothing is learnt), all int64.
    """
    ordered = sorted((int(row) for row in rows), key=lambda row: (-int(encoded.lengths[row]), row))
    while ordered:
        fit = max(1, tokens // max(1, int(encoded.lengths[ordered[0]])))
        yield _pad([encoded[row] for row in ordered[:fit]])
        ordered = ordered[fit:]


def _pad(examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, torch.Tensor]:
    shape = (len(examples), max(len(tokens) for tokens, _ in examples))
    ids, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    for i, (tokens, response) in enumerate(examples):
        own = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
        learnt = torch.from_numpy(np.asarray(response, dtype=bool))
        ids[i, : len(own)], mask[i, : len(own)] = own, 1
        labels[i, : len(own)] = torch.where(learnt, own, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def labelled(batch: Mapping[str, torch.Tensor]) -> int:
    """How many tokens the loss is a mean over: the first has nothing before it to be predicted from."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())
