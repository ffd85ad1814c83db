"""A data set whose examples carry their row number, and the collator that makes a tensor of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from pursuit.online.scoring import EXAMPLE_IDS


class NumberedRows(Dataset):
    """The rows of a data set with `example_ids`, the row's own number, beside what they hold."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], EXAMPLE_IDS: int(index)}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        many = getattr(self.rows, "__getitems__", None)  # data sets that read many rows faster than one by one
        found = many(indices) if many is not None else [self.rows[i] for i in indices]
        return [{**row, EXAMPLE_IDS: int(i)} for row, i in zip(found, indices, strict=True)]


class NumberingCollator:
    """A collator that never sees the row numbers, and a batch that has them: `example_ids`, (B,) int64."""

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Any]) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        ids = [example[EXAMPLE_IDS] for example in examples]
        plain = [{key: value for key, value in example.items() if key != EXAMPLE_IDS} for example in examples]
        batch = self.collator(plain)
        batch[EXAMPLE_IDS] = torch.tensor(ids, dtype=torch.int64)
        return batch
