"""Per-example gradients of matrices by batched products, on a GPU of several matrices at once.

A small model's products take less time than to start them. Those of one shape are therefore put off until there are
enough of them, and made together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pursuit.gradients.scratch import Scratch
from pursuit.gradients.sketch import MatrixSketch

PUT_OFF = 1 << 27  # numbers that go into products and come out: 256 MiB in bfloat16


@dataclass
class Group:
    """Products of one shape; their sides are (B, T, R) and (B, T, C), or what a sketch makes of them."""

    sketch: MatrixSketch | None
    names: list[str] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    columns: list[Tensor] = field(default_factory=list)


class Products:
    """Takes both sides of matrices' gradients, Σ_tokens of their outer products, and hands over the blocks.

    Args:
        done: receives a name and its block: (B, R, C), or what the sketch makes; float32 or in the type of the rows.
            Its memory serves the next one.
        most: numbers that may be put off, of all shapes (those of one shape stand in memory twice while they are
            brought together); with 0 each product is made at once.
    """

    def __init__(self, done: Callable[[str, Tensor], None], most: int) -> None:
        self.done, self.most = done, most
        self._scratch = Scratch()
        self._groups: dict[tuple[object, ...], Group] = {}
        self._waiting = 0  # numbers

    def __call__(self, name: str, rows: Tensor, columns: Tensor, sketch: MatrixSketch | None) -> None:
        """One matrix's sides, and what narrowed them; of different types, the columns are converted."""
        if rows.dtype != columns.dtype and not rows.is_complex():
            columns = columns.to(rows.dtype)
        numbers = rows.numel() + columns.numel() + len(rows) * rows.shape[-1] * columns.shape[-1]
        if 2 * numbers > self.most:
            self.done(name, self._product(name, rows, columns, sketch))
            return
        if self._waiting + numbers > self.most:
            self.flush()
        self._waiting += numbers
        kind = (rows.shape, columns.shape, rows.dtype, sketch is None)
        group = self._groups.setdefault(kind, Group(sketch))
        group.names.append(name)
        group.rows.append(rows)
        group.columns.append(columns)

    def flush(self) -> None:
        """Make what was put off."""
        groups, self._groups, self._waiting = self._groups, {}, 0
        for group in groups.values():
            self._make(group)

    def _make(self, group: Group) -> None:
        rows, columns = torch.cat(group.rows), torch.cat(group.columns)
        examples = len(group.rows[0])
        group.rows.clear()
        group.columns.clear()
        found = self._product(group.names[0], rows, columns, group.sketch)
        for name, block in zip(group.names, found.split(examples), strict=True):
            self.done(name, block)

    def _product(self, name: str, rows: Tensor, columns: Tensor, sketch: MatrixSketch | None) -> Tensor:
        if sketch is not None:
            return sketch.product(name, rows, columns)
        shape = (len(rows), rows.shape[2], columns.shape[2])
        out = self._scratch.take(shape, rows.device) if rows.dtype == torch.float32 else None
        return torch.bmm(rows.mT, columns, out=out)
