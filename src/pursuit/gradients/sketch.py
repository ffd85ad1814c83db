"""What projects the gradient of a weight matrix before it is formed, token by token."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

ROWS, COLUMNS = 0, 1  # the sides of a matrix


class MatrixSketch(Protocol):
    """One example's gradient of a weight matrix W (R, C) is Σ_tokens u_t v_tᵀ: of what goes in and of the gradient of
    what comes out. Both sides are narrowed, and the projection is made of the narrow ones; (R, C) never exists.
    """

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many numbers each parameter's gradient becomes, all parameters."""
        ...

    def __contains__(self, name: object, /) -> bool:
        """Whether this parameter's gradient is projected; those of others stay whole."""
        ...

    def narrow(self, name: str, side: int, values: Tensor, /) -> Tensor:
        """(B, T, R or C) values on that side to (B, T, m)."""
        ...

    def narrow_ids(self, name: str, ids: Tensor, rows: int, padding: int | None, /) -> Tensor:
        """(B, T) token ids to what `narrow` would make of the unit vectors that went into an embedding of `rows`."""
        ...

    def width(self, name: str, side: int, size: int, /) -> int:
        """Numbers that `narrow` makes of `size`."""
        ...

    def product(self, name: str, rows: Tensor, columns: Tensor, /) -> Tensor:
        """(B, …) float32 or in the type of the sides, the projection of Σ_tokens u vᵀ of the narrow sides.

        Matrices whose narrow sides have the same shapes may be given together, one after the other, by either's name.
        """
        ...

    def scaled(self, scales: Mapping[str, Sequence[Tensor]], /) -> Self:
        """A sketch that also multiplies row i and column j of a gradient by rows[i] · columns[j]."""
        ...

    def operations(self) -> float:
        """What narrowing costs a token, in floating-point operations of a matrix product."""
        ...


def reduced(sketch: MatrixSketch, name: str, gradient: Tensor) -> Tensor:
    """(B, R, C) gradients that were formed all the same to what `product` makes; of other parameters as they are."""
    if name not in sketch:
        return gradient
    units = torch.eye(gradient.shape[1], device=gradient.device)[None]
    rows = sketch.narrow(name, ROWS, units)
    return sketch.product(name, rows.expand(len(gradient), *rows.shape[1:]), sketch.narrow(name, COLUMNS, gradient))


def place_of(key: str) -> int:
    """Where the random bits of this key begin, the same wherever it is asked."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
