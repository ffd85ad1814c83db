"""Random projections from P coordinates to d, each a pure function of (seed, P, d).

The matrix never depends on batch size, device, process or shard: its random bits come from a counter-based generator
(Philox) keyed by the seed and the place in the matrix, always on the CPU. Blocks of a gradient may arrive in any order.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pursuit.recipes import ProjectionKind

DENSE_ROWS = 512  # coordinates whose part of the dense matrix is generated at a time: 512 × 8192 floats = 16 MiB
SIGN_BLOCK = 1 << 20  # coordinates whose signs one counter block of the generator gives
GATHERED = 1 << 27  # numbers that are brought in place together on a GPU: 512 MiB
KEPT_SIGNS = 1 << 26  # up to this many coordinates the signs stay in memory (256 MiB); beyond, they are made again


class Projection(Protocol):
    """Accumulates blocks of (B, P) gradients into (B, d)."""

    dimension: int

    def start(self, examples: int, device: torch.device) -> Tensor:
        """An empty accumulator for a batch."""
        ...

    def add(self, accumulator: Tensor, offset: int, block: Tensor) -> None:
        """Add the coordinates [offset, offset + p) from `block`, (B, p) float32."""
        ...

    def finish(self, accumulator: Tensor) -> Tensor:
        """(B, d) float32 projected rows."""
        ...


def make_projection(method: ProjectionKind, size: int, dimension: int, seed: int) -> Projection:
    """Build the projection of `size` coordinates to `dimension`.

    "sparse" (default): one ±1 a coordinate, O(P) an example. "rademacher": dense ±1/√d as in LESS (arXiv 2402.04333,
    section 3.2) and TAGCOS, O(P·d) an example. "none": keeps all P coordinates; for tiny P. "tensorsketch" and
    "factored": the second half of it, sparse, of the `size` numbers that a `MatrixSketch` left.
    """
    if method in ("sparse", "tensorsketch", "factored"):
        return SparseProjection(size, dimension, seed)
    if method == "rademacher":
        return DenseProjection(size, dimension, seed)
    if method == "none":
        return NoProjection(size)
    raise ValueError(f"unknown projection {method!r}")


class SparseProjection:
    """A count sketch whose buckets are laid out for memory speed [ours].

    Coordinate j belongs to chunk c = j // d and goes, with a random sign of its own, to bucket (j + shift_c) mod d,
    where each chunk has a random shift. Two coordinates of one chunk never meet; two of different chunks meet with
    probability 1/d, as in a count sketch, so inner products keep the same mean and mean squared error. Whole chunks are
    added at once, which is about ten times faster on a CPU than scattering single coordinates; on a GPU, where each
    addition would be a launch, many chunks are brought in place together.

    Args:
        use: tells apart the random bits of projections with the same seed; two numbers from it on are its own.
    """

    def __init__(self, size: int, dimension: int, seed: int, *, use: int = 0) -> None:
        self.size, self.dimension, self.seed, self._use = size, dimension, seed, use
        chunks = -(-size // dimension)
        self.shifts: list[int] = _generator(seed, use, 0).integers(0, dimension, chunks).tolist()
        self._kept: dict[torch.device, Tensor] = {}
        self._moved_shifts: dict[torch.device, Tensor] = {}

    def start(self, examples: int, device: torch.device) -> Tensor:
        """(B, 2d): a shifted chunk may run over the end; `finish` folds the second half back."""
        return torch.zeros(examples, 2 * self.dimension, device=device)

    def add(self, accumulator: Tensor, offset: int, block: Tensor) -> None:
        """See `Projection.add`."""
        signs = self._signs(offset, offset + block.shape[1], block.device)
        way = self._add_by_chunk if block.device.type == "cpu" else self._add_gathered
        way(accumulator, offset, block, signs)

    def _add_by_chunk(self, accumulator: Tensor, offset: int, block: Tensor, signs: Tensor) -> None:
        begin, width = 0, block.shape[1]
        while begin < width:
            chunk, within = divmod(offset + begin, self.dimension)
            end = min(width, begin + self.dimension - within)
            at = self.shifts[chunk] + within
            accumulator[:, at : at + end - begin].addcmul_(block[:, begin:end], signs[begin:end])
            begin = end

    def _add_gathered(self, accumulator: Tensor, offset: int, block: Tensor, signs: Tensor) -> None:
        step = max(1, GATHERED // (len(block) * self.dimension)) * self.dimension
        for begin in range(0, block.shape[1], step):
            part = slice(begin, begin + step)
            self._add_together(accumulator, offset + begin, block[:, part], signs[part])

    def _add_together(self, accumulator: Tensor, offset: int, block: Tensor, signs: Tensor) -> None:
        """Bucket j of chunk c takes the coordinate c · d + (j − shift_c) mod d, if that is in the block."""
        width, d, device = block.shape[1], self.dimension, block.device
        chunks = range(offset // d, -(-(offset + width) // d))
        if device not in self._moved_shifts:
            self._moved_shifts[device] = torch.tensor(self.shifts, device=device)
        shifts = self._moved_shifts[device][chunks.start : chunks.stop, None]
        begins = torch.arange(chunks.start, chunks.stop, device=device)[:, None] * d - offset
        wanted = (begins + (torch.arange(d, device=device) - shifts) % d).flatten()
        index = wanted.clamp(0, width - 1)
        moved = block.index_select(1, index).mul_(signs[index] * (wanted == index))
        accumulator[:, :d] += moved.view(len(block), -1, d).sum(dim=1)

    def finish(self, accumulator: Tensor) -> Tensor:
        """See `Projection.finish`."""
        return accumulator[:, : self.dimension] + accumulator[:, self.dimension :]

    def _signs(self, start: int, stop: int, device: torch.device) -> Tensor:
        """(stop - start,) of these coordinates: of one copy of all a device, however a batch cuts them."""
        if self.size > KEPT_SIGNS:
            return self._made_signs(start, stop).to(device)
        if device not in self._kept:
            self._kept[device] = self._made_signs(0, self.size).to(device)
        return self._kept[device][start:stop]

    def _made_signs(self, start: int, stop: int) -> Tensor:
        parts = []
        for number in range(start // SIGN_BLOCK, -(-stop // SIGN_BLOCK)):
            base = number * SIGN_BLOCK
            parts.append(random_signs(self.seed, self._use + 1, number, SIGN_BLOCK)[max(start - base, 0) : stop - base])
        return torch.cat(parts)


class DenseProjection:
    """±1/√d everywhere, as published; generated in blocks of coordinates and never stored whole."""

    def __init__(self, size: int, dimension: int, seed: int) -> None:
        self.size, self.dimension, self.seed = size, dimension, seed

    def start(self, examples: int, device: torch.device) -> Tensor:
        """(B, d)."""
        return torch.zeros(examples, self.dimension, device=device)

    def add(self, accumulator: Tensor, offset: int, block: Tensor) -> None:
        """See `Projection.add`."""
        stop = offset + block.shape[1]
        for number in range(offset // DENSE_ROWS, -(-stop // DENSE_ROWS)):
            base = number * DENSE_ROWS
            first, last = max(offset, base), min(stop, base + DENSE_ROWS)
            rows = self._matrix(number)[first - base : last - base].to(block.device)
            accumulator.addmm_(block[:, first - offset : last - offset], rows)

    def finish(self, accumulator: Tensor) -> Tensor:
        """See `Projection.finish`."""
        return accumulator / self.dimension**0.5

    def _matrix(self, number: int) -> Tensor:
        signs = random_signs(self.seed, 2, number, DENSE_ROWS * self.dimension)
        return signs.view(DENSE_ROWS, self.dimension)


class NoProjection:
    """All coordinates, side by side."""

    def __init__(self, size: int) -> None:
        self.dimension = size

    def start(self, examples: int, device: torch.device) -> Tensor:
        """(B, P)."""
        return torch.zeros(examples, self.dimension, device=device)

    def add(self, accumulator: Tensor, offset: int, block: Tensor) -> None:
        """See `Projection.add`."""
        accumulator[:, offset : offset + block.shape[1]] = block

    def finish(self, accumulator: Tensor) -> Tensor:
        """See `Projection.finish`."""
        return accumulator


def random_signs(seed: int, purpose: int, place: int, count: int) -> Tensor:
    """(count,) float32 of ±1 on the CPU, see `_generator`."""
    bits = np.frombuffer(_generator(seed, purpose, place).bytes(-(-count // 8)), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(bits, count=count)).to(torch.float32).mul_(2).sub_(1)


def random_permutation(seed: int, purpose: int, place: int, count: int) -> Tensor:
    """(count,) int64 on the CPU, see `_generator`."""
    return torch.from_numpy(_generator(seed, purpose, place).permutation(count))


def _generator(seed: int, purpose: int, place: int) -> np.random.Generator:
    """Random bits that depend on (seed, purpose, place) alone; `purpose` keeps the different uses apart."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, 0, place]))
