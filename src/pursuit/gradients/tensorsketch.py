"""Projecting a gradient before it is formed, with nearly the noise of independent signs: TensorSketch [ours, after
Pham and Pagh, KDD 2013].

A count sketch of u gives each coordinate a sign and one of D places, and adds up what shares a place. The count sketch
of u vᵀ in which (i, j) has the product of both signs, at place (h(i) + k(j)) mod D, is the circular convolution of
those of u and v: a product of their Fourier transforms. Those products are added over the tokens, and transformed back
once an example: O(R + C + D log D) a token, where the gradient takes R · C.

The inner product of two gradients of rank 1 has a relative variance of at most 8 / D (Avron, Nguyen and Woodruff, NIPS
2014). Independent signs for every coordinate have 2 / D, and a Kronecker product of as many numbers 4 / √D
(`pursuit.gradients.factors`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from pursuit.gradients.project import random_permutation, random_signs
from pursuit.gradients.sketch import COLUMNS, ROWS, place_of

WORTH = 256  # entries of a matrix for each number of its sketch, below which forming the gradient is as fast [measured]
WIDER = 4  # times d / matrices: the sketches' noise, 8 / D, is then that of what folds them to d, 2 / d
MOST = 8192  # numbers of one matrix
# operations of a matrix product that take as long as a token's R + C, and as its D · log₂ D [measured on a CPU]
SIDE_OPERATIONS, TRANSFORM_OPERATIONS = 60, 30


@dataclass(frozen=True)
class Side:
    """The count sketch of one side of a matrix.

    Attributes:
        signs: (n,) ±1, times what scales it.
        places: (n,) int64, the place of each coordinate.
        order: of a shuffled side (k · D,) int64, the coordinate in each slot, n for none; slot s has place s mod D.
        shifts: of the other side k numbers; coordinate i of chunk c = i // D has place (i + shifts[c]) mod D.
    """

    signs: Tensor
    places: Tensor
    order: Tensor | None = None
    shifts: tuple[int, ...] = ()


@dataclass(frozen=True)
class TensorSketch:
    """The `MatrixSketch` of large matrices. Small ones are formed; what they become is their size in `sizes`.

    Only the shorter side is shuffled: entries that differ there meet with a chance of 1 / D. Of the longer one, chunks
    of D are shifted at random [ours], as in `SparseProjection`: entries that differ only there do too, or never meet.
    """

    sides: dict[str, tuple[Side, ...]]
    numbers: dict[str, int]
    sizes: dict[str, int]

    def __contains__(self, name: object) -> bool:
        return name in self.sides

    def narrow(self, name: str, side: int, values: Tensor) -> Tensor:
        """(B, T, n) to (B, T, D / 2 + 1) complex64: the Fourier transform of the count sketch."""
        return torch.fft.rfft(counted(values, self.sides[name][side], self.numbers[name]), n=self.numbers[name])

    def narrow_ids(self, name: str, ids: Tensor, rows: int, padding: int | None) -> Tensor:
        """See `MatrixSketch`."""
        side, numbers = self.sides[name][ROWS], self.numbers[name]
        signs = side.signs[ids]
        if padding is not None:
            signs = signs.masked_fill(ids == padding, 0)  # as torch does
        spikes = torch.zeros(*ids.shape, numbers, device=ids.device)
        return torch.fft.rfft(spikes.scatter_(-1, side.places[ids][..., None], signs[..., None]))

    def width(self, name: str, side: int, size: int) -> int:
        """See `MatrixSketch`; real numbers."""
        return 2 * (self.numbers[name] // 2 + 1)

    def product(self, name: str, rows: Tensor, columns: Tensor) -> Tensor:
        """(B, D)."""
        return torch.fft.irfft((rows * columns).sum(dim=1), n=self.numbers[name])

    def scaled(self, scales: Mapping[str, Sequence[Tensor]]) -> TensorSketch:
        """See `MatrixSketch`."""
        sides = dict(self.sides)
        for name, both in scales.items():
            pairs = zip(sides[name], both, strict=True)
            sides[name] = tuple(replace(side, signs=side.signs * scale) for side, scale in pairs)
        return replace(self, sides=sides)

    def operations(self) -> float:
        """See `MatrixSketch`."""
        sides = sum(len(side.signs) for both in self.sides.values() for side in both)
        transforms = sum(numbers * math.log2(numbers) for numbers in self.numbers.values())
        return SIDE_OPERATIONS * sides + TRANSFORM_OPERATIONS * transforms


def make_tensor_sketch(
    shapes: Mapping[str, Sequence[int]], dimension: int, seed: int, device: torch.device | str = "cpu",
    worth: int = WORTH, wider: float = WIDER,
) -> TensorSketch:  # fmt: skip
    """A pure function of the seed, d, the shapes, and for each matrix its name.

    A matrix becomes the next power of two from `wider` · d / matrices on, or from √(R · C) on where that is less, but
    not less than d / matrices; at most `MOST` [ours]. One with fewer than `worth` entries a number is formed.
    """
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    share = dimension / max(1, len(matrices))
    sides: dict[str, tuple[Side, ...]] = {}
    numbers: dict[str, int] = {}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        wanted = max(share, min(wider * share, math.sqrt(sizes[name])))
        length = min(MOST, 2 ** math.ceil(math.log2(max(2.0, wanted))))
        if len(shape) == 2 and sizes[name] > worth * length:
            sides[name] = (
                _side(shape, ROWS, length, seed, name, device),
                _side(shape, COLUMNS, length, seed, name, device),
            )
            numbers[name] = sizes[name] = length
    return TensorSketch(sides, numbers, sizes)


def _side(
    shape: Sequence[int], side: int, numbers: int, seed: int, name: str, device: torch.device | str
) -> Side:  # fmt: skip
    size, place = shape[side], place_of(f"{name}/{side}")
    signs, chunks = random_signs(seed, 4, place, size).to(device), -(-size // numbers)
    shuffled = random_permutation(seed, 5, place, chunks * numbers)
    if side == int(np.argmin(shape)):
        slots = shuffled[:size]
        return Side(signs, (slots % numbers).to(device), order_of(slots, numbers).to(device))
    shifts = shuffled[:chunks] % numbers
    places = (torch.arange(size) + shifts.repeat_interleave(numbers)[:size]) % numbers
    return Side(signs, places.to(device), shifts=tuple(shifts.tolist()))


def order_of(slots: Tensor, numbers: int) -> Tensor:
    """(k · D,) the coordinate in each slot, n for none; (n,) `slots` are those of the coordinates."""
    order = torch.full((-(-len(slots) // numbers) * numbers,), len(slots))
    order[slots] = torch.arange(len(slots))
    return order


def counted(values: Tensor, side: Side, numbers: int) -> Tensor:
    """(…, n) to (…, D) float32, the count sketch; or to (…, n) where it is that but for zeros at the end."""
    signed = values.float() * side.signs
    if side.order is None:
        return folded(signed, numbers, side.shifts)
    if signed.device.type == "cpu":  # several times faster than to gather, which a GPU does well
        return torch.zeros(*signed.shape[:-1], numbers).index_add_(-1, side.places, signed)
    return gathered(signed, side.order, numbers)  # index_add_ would sum in no fixed order there


def gathered(signed: Tensor, order: Tensor, numbers: int) -> Tensor:
    """(…, n) to (…, D): what shares a place is brought together, and added in the order of the slots."""
    slots = nn.functional.pad(signed, (0, 1)).index_select(-1, order)
    return folded(slots, numbers, (0,) * (len(order) // numbers))


def folded(values: Tensor, numbers: int, shifts: Sequence[int]) -> Tensor:
    """(…, n) to (…, D): the chunks of D, each shifted around, added up."""
    if values.shape[-1] <= numbers and shifts[0] == 0:
        return values
    total = torch.zeros(*values.shape[:-1], numbers, device=values.device)
    for chunk, shift in enumerate(shifts):
        part = values[..., chunk * numbers : (chunk + 1) * numbers]
        before = part[..., : numbers - shift]  # what is not shifted beyond the end
        total[..., shift : shift + before.shape[-1]] += before
        beyond = part[..., numbers - shift :]
        total[..., : beyond.shape[-1]] += beyond
    return total
