"""Candidate batches: what they must look like, and the part of one that is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pursuit.batches import IGNORED
from pursuit.errors import DataError, SelectionError

PACKED = (
    "Batch selection needs one example a row, and this batch is packed ({sign}): several examples share a row, attend "
    "apart only by their position ids, and cannot be kept or dropped one by one. Turn packing and padding_free off."
)
PACKED_KEYS = ("cu_seq_lens_q", "cu_seq_lens_k", "cu_seqlens", "seq_idx", "seq_lengths")


def check_batch(batch: Mapping[str, Any]) -> int:
    """B, the number of candidates.

    Raises:
        DataError: no token ids or labels of one shape (B, T).
        SelectionError: a packed batch.
    """
    ids, labels = batch.get("input_ids"), batch.get("labels")
    if not isinstance(ids, Tensor) or not isinstance(labels, Tensor) or ids.dim() != 2 or ids.shape != labels.shape:
        shapes = {name: tuple(value.shape) for name, value in batch.items() if isinstance(value, Tensor)}
        raise DataError(f"a batch must have input_ids and labels of one shape (B, T); this one has {shapes}.")
    for key in PACKED_KEYS:
        if batch.get(key) is not None:
            raise SelectionError(PACKED.format(sign=f"it has {key}"))
    positions = batch.get("position_ids")
    if isinstance(positions, Tensor) and positions.dim() == 2:
        goes_back = positions[:, 1:] <= positions[:, :-1]
        mask = batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            goes_back = goes_back & mask[:, 1:].bool() & mask[:, :-1].bool()
        if bool(goes_back.any()):
            raise SelectionError(PACKED.format(sign="its position_ids start again within a row"))
    return len(ids)


def take(batch: Mapping[str, Any], keep: Tensor | np.ndarray) -> dict[str, Any]:
    """The kept examples of a batch, without the columns on the right that are padding in all of them.

    All of the batch when all is kept, as it was. Values that are no tensors, and single numbers, stay as they are.

    Args:
        keep: (n,) int64 indices.

    Raises:
        DataError: a tensor whose first dimension is not the batch's, so that its part is unknown.
    """
    size, length = batch["input_ids"].shape
    if len(keep) == size:
        return dict(batch)
    index = torch.as_tensor(keep, dtype=torch.int64, device=batch["input_ids"].device)
    part: dict[str, Any] = {}
    for name, value in batch.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            part[name] = value
        elif len(value) == size:
            part[name] = value[index.to(value.device)]
        else:
            raise DataError(
                f"the batch's {name} has shape {tuple(value.shape)}, its input_ids {(size, length)}: which part of it "
                "belongs to which example is not known. Batch selection takes text only."
            )
    return _trimmed(part, length)


def _trimmed(part: dict[str, Any], length: int) -> dict[str, Any]:
    mask = part.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return part
    needed = int(used_lengths(part).max()) or length
    if needed == length:
        return part
    columns = {name for name, value in part.items() if isinstance(value, Tensor) and value.shape[1:2] == (length,)}
    return {name: value[:, :needed] if name in columns else value for name, value in part.items()}


def used_lengths(batch: Mapping[str, Any]) -> np.ndarray:
    """(B,) columns of each example up to its last that is neither padding nor without a label."""
    mask, length = batch.get("attention_mask"), batch["input_ids"].shape[1]
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return np.full(len(batch["input_ids"]), length)
    used = (mask != 0) | (batch["labels"] != IGNORED)
    return (used * torch.arange(1, length + 1, device=used.device)).amax(dim=1).cpu().numpy()


def kept_count(size: int, rate: float) -> int:
    """n = (1 − α) B rounded half up, at least 1."""
    return min(size, max(1, int((1 - rate) * size + 0.5 + 1e-9)))
