"""Projecting a gradient before it is formed [ours, after LoGra, arXiv 2405.13954, section 3.2].

One example's gradient of a weight matrix W (R, C) is Σ_tokens u_t v_tᵀ, of what goes in and of the gradient of what
comes out. With random matrices L (R, p) and M (C, q), drawn once, its projection Lᵀ (Σ u_t v_tᵀ) M is
Σ (Lᵀu_t) (Mᵀv_t)ᵀ: the (R, C) gradient never exists. On the flat gradient it is the Kronecker product L ⊗ M.

The price is noise: signs are drawn for R + C directions instead of R · C coordinates, so that the inner product of two
gradients of rank 1 has a relative variance of about 4 / p, where p² independent numbers would have 2 / p².
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pursuit.gradients.project import random_signs
from pursuit.gradients.sketch import place_of

LEAST = 256  # numbers of a matrix before the rest is folded to d: 16 × 16, below which the noise grows fast

Matrix = Tensor | None  # None: a side that is short already stays as it is


@dataclass(frozen=True)
class Factors:
    """L and M of every weight matrix, by parameter name: a `MatrixSketch`.

    Attributes:
        left, right: (R, p) and (C, q) float32; parameters that are no matrices have none and stay whole.
        sizes: how many numbers each parameter's gradient becomes, all parameters.
    """

    left: dict[str, Matrix]
    right: dict[str, Matrix]
    sizes: dict[str, int]
    _converted: dict[tuple[str, int, torch.dtype], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __contains__(self, name: object) -> bool:
        return name in self.left

    def narrow(self, name: str, side: int, values: Tensor) -> Tensor:
        """(B, T, R) times (R, p) or (B, T, C) times (C, q), in the dtype of the values."""
        matrix, key = self._matrix(name, side), (name, side, values.dtype)
        if matrix is None:
            return values
        if key not in self._converted:
            self._converted[key] = matrix.to(values.dtype)
        return values @ self._converted[key]

    def narrow_ids(self, name: str, ids: Tensor, rows: int, padding: int | None) -> Tensor:
        """See `MatrixSketch`; float32."""
        matrix = self.left[name]
        found = (torch.eye(rows, device=ids.device) if matrix is None else matrix)[ids]
        return found if padding is None else found.masked_fill((ids == padding)[..., None], 0)  # as torch does

    def width(self, name: str, side: int, size: int) -> int:
        """See `MatrixSketch`."""
        matrix = self._matrix(name, side)
        return size if matrix is None else matrix.shape[1]

    def product(self, name: str, rows: Tensor, columns: Tensor) -> Tensor:
        """(B, p, q), in the type of the rows."""
        return torch.bmm(rows.mT, columns.to(rows.dtype))

    def scaled(self, scales: Mapping[str, Sequence[Tensor]]) -> Factors:
        """Factors that also multiply row i and column j of a gradient by rows[i] · columns[j]."""
        left, right = dict(self.left), dict(self.right)
        for name, (rows, columns) in scales.items():
            left[name], right[name] = _times(rows, left[name]), _times(columns, right[name])
        return Factors(left, right, self.sizes)

    def operations(self) -> float:
        """See `MatrixSketch`; next to nothing."""
        return 0.0

    def _matrix(self, name: str, side: int) -> Matrix:
        return (self.left, self.right)[side][name]


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


def _times(scale: Tensor, matrix: Matrix) -> Tensor:
    return torch.diag(scale) if matrix is None else scale[:, None] * matrix


def _signs(size: int, width: int, seed: int, key: str, device: torch.device | str) -> Matrix:
    if width >= size:
        return None
    return random_signs(seed, 3, place_of(key), size * width).view(size, width).div_(math.sqrt(width)).to(device)
