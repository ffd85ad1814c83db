"""How the unit rows of a feature store are written down: as floats, as int8, or as signs, eight to a byte.

What a shard holds of (n, d) unit rows:

    float16, bfloat16, float32   features (n, d)
    int8   features (n, d) int8               scales (n,) float32: row = features · scale, of unit norm
    bits   features (n, ⌈d / 8⌉) uint8        scales (n,) float32: mean |coordinate| of the row
           one sign a coordinate, 1 for ≥ 0, as `numpy.packbits` packs them (the highest bit first, zeros at the end)

The closest multiple of its signs to a row (least squares) is signs · scale. It is shorter than the row, so a row of
signs is read at unit norm, signs / √d, and inner products stay cosines [ours]; scale · √d is the cosine between the row
and its signs. A zero row has scale 0 and is read as a zero row.

Signs are meant for projected rows: a coordinate that is zero gets the sign of a positive one, and where that happens in
many rows at the same place (plain gradients with projection "none") they look more alike than they are.

Every row is coded by itself: its code depends neither on the other rows of a batch nor on the machine's threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pursuit.errors import StoreError

FLOATS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
LARGEST = 127  # of an int8 code: -128 is not used, so that a row and its negative have opposite codes
AT_ONCE = 1 << 21  # numbers: they are coded in float64
BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1  # (256, 8) signs


def row_bytes(dtype: str, dimension: int) -> int:
    """Bytes that one row of d numbers takes at one checkpoint."""
    if dtype in FLOATS:
        return dimension * FLOATS[dtype].itemsize
    return (dimension if dtype == "int8" else -(-dimension // 8)) + 4


def empty_rows(count: int, dimension: int, dtype: str) -> dict[str, Tensor]:
    """Tensors with room for `count` rows as `encode` makes them."""
    if dtype in FLOATS:
        return {"features": torch.empty(count, dimension, dtype=FLOATS[dtype])}
    width, kind = (dimension, torch.int8) if dtype == "int8" else (-(-dimension // 8), torch.uint8)
    return {"features": torch.empty(count, width, dtype=kind), "scales": torch.empty(count)}


def encode(rows: Tensor, dtype: str) -> dict[str, Tensor]:
    """The tensors of a shard for these rows.

    Args:
        rows: (n, d) float32 on the CPU, of unit norm or zero.

    Raises:
        StoreError: a row is not finite and has no int8 or sign code.
    """
    if dtype in FLOATS:
        return {"features": rows.to(FLOATS[dtype])}
    coded = empty_rows(len(rows), rows.shape[1], dtype)
    step = max(1, AT_ONCE // max(1, rows.shape[1]))
    for start in range(0, len(rows), step):
        some = slice(start, start + step)
        values = rows[some].double().numpy()
        peaks = np.abs(values).max(axis=1, initial=0)
        bad = np.flatnonzero(~np.isfinite(peaks))
        if len(bad):
            raise StoreError(f"row {start + bad[0]} of a batch is not finite and cannot be stored as {dtype}.")
        codes, scales = _integers(values, peaks) if dtype == "int8" else _signs(values)
        coded["features"][some], coded["scales"][some] = torch.from_numpy(codes), torch.from_numpy(scales)
    return coded


def _integers(values: NDArray[np.float64], peaks: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """(n, d) codes that use the whole range in every row, and what makes each row's norm 1."""
    steps = np.where(peaks > 0, peaks, 1)[:, None]
    codes = np.rint(values / steps * LARGEST).astype(np.int8)
    squares = np.square(codes, dtype=np.int64).sum(axis=1)  # whole numbers: the same in any order of summation
    return codes, np.divide(1, np.sqrt(squares), out=np.zeros(len(codes)), where=squares > 0)


def _signs(values: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """(n, ⌈d / 8⌉) packed signs, and the least-squares multiple ⟨row, signs⟩ / d of each row."""
    return np.packbits(values >= 0, axis=1), np.abs(values).mean(axis=1)


def decode(codes: Tensor, scales: Tensor | None, out: NDArray[np.float32]) -> None:
    """Write rows into an array (n, d).

    Args:
        codes: n rows of a shard's `features`, on the CPU.
        scales: (n,) of the same rows; None for floats.
    """
    if codes.dtype == torch.uint8:
        assert scales is not None
        _unpacked(codes.numpy(), out)
        out[scales.numpy() == 0] = 0
        return
    rows = torch.from_numpy(out).copy_(codes)
    if scales is not None:
        rows.mul_(scales[:, None])


def _unpacked(codes: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Signs / √d: a byte stands for eight numbers, looked up at once (`numpy.unpackbits` and a product take 3 times as
    long)."""
    count, dimension = out.shape
    table = BYTES * np.float32(1 / np.sqrt(dimension))
    wide = out if dimension % 8 == 0 and out.flags.c_contiguous else np.empty((count, 8 * codes.shape[1]), np.float32)
    eights = wide.reshape(count, codes.shape[1], 8)
    np.take(table, codes, axis=0, out=eights, mode="clip")  # any other mode would write to a copy first
    if wide is not out:
        out[:] = wide[:, :dimension]
