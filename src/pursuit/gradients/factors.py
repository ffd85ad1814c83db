"""Projecting a gradient before it is formed [ours, after LoGra, arXiv 2405.13954, section 3.2].

One example's gradient of a weight matrix W (R, C) is Σ_tokens u_t v_tᵀ, of what goes in and of the gradient of what
comes out. With random matrices L (R, p) and M (C, q), drawn once, its projection Lᵀ (Σ u_t v_tᵀ) M is
Σ (Lᵀu_t) (Mᵀv_t)ᵀ: the (R, C) gradient never exists. On the flat gradient it is the Kronecker product L ⊗ M.

The price is noise: signs are drawn for R + C directions instead of R · C coordinates, so that the inner product of two
gradients of rank 1 has a relative variance of about 4 / p, where p² independent numbers would have 2 / p².
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pursuit.gradients.project import random_signs

LEAST = 256  # numbers of a matrix before the rest is folded to d: 16 × 16, below which the noise grows fast

Matrix = Tensor | None  # None: a side that is short already stays as it is


@dataclass(frozen=True)
class Factors:
    """L and M of every weight matrix, by parameter name.

    Attributes:
        left, right: (R, p) and (C, q) float32; parameters that are no matrices have none and stay whole.
        sizes: how many numbers each parameter's gradient becomes, all parameters.
    """

    left: dict[str, Matrix]
    right: dict[str, Matrix]
    sizes: dict[str, int]

    def reduce(self, name: str, gradient: Tensor) -> Tensor:
        """(B, R, C) gradients that were formed all the same to (B, p, q); those of other shapes as they are."""
        if name not in self.left:
            return gradient
        return narrowed(narrowed(gradient, self.right[name]).mT, self.left[name]).mT

    def scaled(self, scales: Mapping[str, Sequence[Tensor]]) -> Factors:
        """Factors that also multiply row i and column j of a gradient by rows[i] · columns[j]."""
        left, right = dict(self.left), dict(self.right)
        for name, (rows, columns) in scales.items():
            left[name], right[name] = _times(rows, left[name]), _times(columns, right[name])
        return replace(self, left=left, right=right)


def make_factors(
    shapes: Mapping[str, Sequence[int]], dimension: int, seed: int, device: torch.device | str = "cpu",
    least: int = LEAST,
) -> Factors:  # fmt: skip
    """Random signs / √p and / √q, a pure function of the seed, d, the shapes, and for each matrix its name.

    Every matrix becomes as many numbers, d / matrices but not fewer than `least` [ours]: p and q are the root of that,
    and where one side of a matrix is shorter, the other gets more.
    """
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    numbers = max(least, -(-dimension // max(1, len(matrices))))
    left: dict[str, Matrix] = {}
    right: dict[str, Matrix] = {}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    for name, (rows, columns) in matrices.items():
        p, q = widths(rows, columns, numbers)
        left[name] = _signs(rows, p, seed, f"{name}/left", device)
        right[name] = _signs(columns, q, seed, f"{name}/right", device)
        sizes[name] = p * q
    return Factors(left, right, sizes)


def widths(rows: int, columns: int, numbers: int) -> tuple[int, int]:
    """p ≤ rows and q ≤ columns, as equal as they can be, with p · q ≥ numbers where the matrix has as many."""
    p = min(rows, math.ceil(math.sqrt(numbers)))
    q = min(columns, -(-numbers // p))
    return min(rows, -(-numbers // q)), q


def narrowed(values: Tensor, matrix: Matrix) -> Tensor:
    """(…, R) times (R, p), in the dtype of the values."""
    return values if matrix is None else values @ matrix.to(values.dtype)


def looked_up(ids: Tensor, matrix: Matrix, rows: int, padding: int | None) -> Tensor:
    """(B, T, p) float32 of what went into an embedding of `rows` tokens, where token i is the unit vector i."""
    table = torch.eye(rows, device=ids.device) if matrix is None else matrix
    found = table[ids]
    return found if padding is None else found.masked_fill((ids == padding)[..., None], 0)  # as torch does


def _times(scale: Tensor, matrix: Matrix) -> Tensor:
    return torch.diag(scale) if matrix is None else scale[:, None] * matrix


def _signs(size: int, width: int, seed: int, key: str, device: torch.device | str) -> Matrix:
    if width >= size:
        return None
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    return random_signs(seed, 3, place, size * width).view(size, width).div_(math.sqrt(width)).to(device)
