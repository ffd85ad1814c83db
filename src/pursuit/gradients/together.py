"""Blocks of neighbouring parameters brought together, so that a GPU is given few large pieces of work instead of many
small ones: each of an adapter's blocks is so small that to start what is done with it takes longer than to do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

NUMBERS = 1 << 27  # of all examples' blocks in one piece: 512 MiB


@dataclass
class Piece:
    """Parameters that are neighbours in the gradient.

    Attributes:
        offset: of the first number.
        names: of the parameters, in order.
        width: numbers of all.
        missing: how many parameters are still to come.
        sizes: numbers of each.
        buffer: (B, width) float32, from the first one to the last.
        parts: the buffer's columns of each parameter.
    """

    offset: int
    names: list[str]
    width: int
    missing: int
    sizes: list[int] = field(default_factory=list)
    buffer: Tensor | None = None
    parts: tuple[Tensor, ...] = ()


class Together:
    """Takes parameters' blocks as they come, and hands over neighbours as one.

    Args:
        sizes: name → numbers of its block, in the order in which they lie.
        most: numbers of one example that are handed over at once; a parameter that has more is handed over alone, as
            it came.
        consume: of the parameters' names, the place of the first number, and the float32 numbers, to be changed at
            will: (B, …) of a parameter alone, (B, p) of several.
    """

    def __init__(
        self, sizes: Mapping[str, int], most: int, consume: Callable[[Sequence[str], int, Tensor], None]
    ) -> None:
        self.consume = consume
        self._places: dict[str, tuple[Piece, int]] = {}  # the parameter's piece, and its number there
        offset, piece = 0, Piece(0, [], 0, 0)
        for name, size in sizes.items():
            if piece.names and piece.width + size > most:
                piece = Piece(offset, [], 0, 0)
            self._places[name] = piece, len(piece.names)
            piece.names.append(name)
            piece.sizes.append(size)
            piece.width, piece.missing, offset = piece.width + size, piece.missing + 1, offset + size
        self._waiting = set(sizes)

    def waiting(self) -> list[str]:
        """The parameters that have not come."""
        return sorted(self._waiting)

    def __call__(self, name: str, block: Tensor) -> None:
        """One parameter's (B, …) block, of any floating-point type."""
        self._waiting.discard(name)
        piece, number = self._places[name]
        if len(piece.names) == 1:
            self.consume(piece.names, piece.offset, block.float())
            return
        if piece.buffer is None:
            piece.buffer = torch.empty(len(block), piece.width, device=block.device)
            piece.parts = piece.buffer.split(piece.sizes, dim=1)
        piece.parts[number].copy_(block.flatten(1))
        piece.missing -= 1
        if not piece.missing:
            whole, piece.buffer, piece.parts = piece.buffer, None, ()
            self.consume(piece.names, piece.offset, whole)
