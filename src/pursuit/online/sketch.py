"""A count sketch that spreads its inputs evenly: V numbers to d, a pure function of (seed, V, d)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sketch:
    """Each input has one of d places and a sign; inner products are kept in expectation.

    Attributes:
        places: (d, ⌈V/d⌉) which inputs each place sums, V standing for none.
        signs: the same shape, ±1.
    """

    places: Tensor
    signs: Tensor

    def __call__(self, row: Tensor) -> Tensor:
        """(d,) from (V,): a gather and a sum, whose order is fixed, so that a GPU gives the same bits each time."""
        padded = torch.cat([row, row.new_zeros(1)])
        return (padded[self.places] * self.signs).sum(dim=1)


def make_sketch(inputs: int, outputs: int, seed: int, device: torch.device) -> Sketch | None:
    """Drawn on the CPU from `seed` alone; None where no inputs are to be saved (V ≤ d, or d = 0)."""
    if outputs == 0 or inputs <= outputs:
        return None
    generator = torch.Generator().manual_seed(seed)
    width = -(-inputs // outputs)
    places = torch.full((width * outputs,), inputs, dtype=torch.int64)
    places[:inputs] = torch.randperm(inputs, generator=generator)
    signs = torch.randint(0, 2, (width * outputs,), generator=generator).float() * 2 - 1
    places, signs = places.view(width, outputs).T.contiguous(), signs.view(width, outputs).T.contiguous()
    return Sketch(places.to(device), signs.to(device))
