"""Memory that is used again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """One float32 buffer that grows to the largest block asked for.

    On a CPU, fresh memory for each block of gradients costs more than the arithmetic that fills it.
    """

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def take(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """An uninitialised tensor, which the next call overwrites."""
        size = math.prod(shape)
        if self._buffer.numel() < size or self._buffer.device != device:
            self._buffer = torch.empty(size, device=device)
        return self._buffer[:size].view(*shape)
