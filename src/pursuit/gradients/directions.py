"""Keeping exactly what rows have in common: a part of the d numbers goes along known directions, the others sketch
what is left.

A random projection errs alike in all directions. But gradients share a few in which they are long, and a target's rows
are known before the pool is read. So a run may first take the gradients of some hundred rows, keep the directions in
which these are longest, U with orthonormal columns, and make of every gradient g [ours]

    H · (Uᵀ g ; S (g - U Uᵀ g))

where S is a count sketch, and H only mixes: random signs, a random order, and a Hadamard transform, all orthogonal.
Inner products keep their mean, and lose the sketch's noise inside of U. They are mixed so that every number carries as
much as any other, which codecs of one byte or one bit, and halves of the numbers, rely on.

U is of `wide_dimension(d)` numbers that the run's projection makes of a gradient, not of the P coordinates themselves,
so it is small; and the same at all checkpoints, as methods add these up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pursuit.errors import StoreError
from pursuit.files import fingerprint, tensor_metadata, write_tensors
from pursuit.gradients.project import Projection, SparseProjection, random_permutation, random_signs

WIDEST_SHARE = 0.5  # of d for directions: what is left needs the rest
WIDE, WIDER = 8192, 4  # numbers of a gradient in which directions are sought: at least, and times d
NEGLIGIBLE = 1e-6  # directions of so small a share of the first one's length are rounding
SIGNS, ORDER, REST = 6, 7, 8  # uses of the random bits


def wide_dimension(dimension: int) -> int:
    """Numbers that a gradient becomes before it becomes d."""
    return max(WIDE, WIDER * dimension)


def leading_directions(known: NDArray[np.float32], count: int) -> Tensor:
    """The orthonormal directions in which known rows are longest.

    Args:
        known: (n, D) rows, of unit norm so that each counts the same; n at most some thousand.
        count: how many at most; fewer where the rows span no more.

    Returns:
        (D, m) float32, m ≤ count; m = 0 if all rows are zero.
    """
    rows = known.astype(np.float64)
    squares, sides = np.linalg.eigh(rows @ rows.T)
    squares, sides = squares[::-1][:count], sides[:, ::-1][:, :count]
    lengths = np.sqrt(np.maximum(squares, 0))
    held = lengths > NEGLIGIBLE * max(float(lengths[0]), np.finfo(np.float64).tiny)
    basis = rows.T @ (sides[:, held] / lengths[held])
    return torch.from_numpy(np.ascontiguousarray(np.linalg.qr(basis)[0], dtype=np.float32))


class DirectedProjection:
    """See the top of the file; a `Projection`.

    Args:
        wide: makes D numbers of a gradient.
        basis: (D, m) orthonormal columns.
        dimension: d > m.
    """

    def __init__(self, wide: Projection, basis: Tensor, dimension: int, seed: int) -> None:
        self.wide, self.dimension = wide, dimension
        self._rest = SparseProjection(wide.dimension, dimension - basis.shape[1], seed, use=REST)
        self._basis, self._signs = basis, random_signs(seed, SIGNS, 0, dimension)
        self._order = random_permutation(seed, ORDER, 0, dimension)

    def start(self, examples: int, device: torch.device) -> Tensor:
        """See `Projection.start`."""
        return self.wide.start(examples, device)

    def add(self, accumulator: Tensor, offset: int, block: Tensor) -> None:
        """See `Projection.add`."""
        self.wide.add(accumulator, offset, block)

    def finish(self, accumulator: Tensor) -> Tensor:
        """See `Projection.finish`."""
        rows = self.wide.finish(accumulator)
        if self._basis.device != rows.device:
            self._basis, self._signs = self._basis.to(rows.device), self._signs.to(rows.device)
            self._order = self._order.to(rows.device)
        along = rows @ self._basis
        left = self._rest.start(len(rows), rows.device)
        self._rest.add(left, 0, rows - along @ self._basis.T)
        both = torch.cat([along, self._rest.finish(left)], dim=1)
        return mixed((both * self._signs)[:, self._order])


def mixed(rows: Tensor) -> Tensor:
    """(B, d) rows times an orthogonal matrix: a Hadamard transform of runs of neighbours, as long as the largest power
    of two that divides d. A power of two mixes all, an odd number nothing.
    """
    examples, dimension = rows.shape
    run = dimension & -dimension
    step = 1
    while step < run:
        pairs = rows.view(examples, dimension // (2 * step), 2, step)
        rows = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2)
        rows = rows.view(examples, dimension)
        step *= 2
    return rows / run**0.5


def write_directions(path: Path, basis: Tensor, dimension: int, targets: Sequence[str]) -> None:
    """Keep them in a file, with the d that they are for and the digests of the targets whose rows were known."""
    about = {"dimension": dimension, "targets": list(targets)}
    write_tensors(path, {"directions": basis}, {**about, "content": _digest(basis, about)})


@dataclass(frozen=True)
class Directions:
    """What stands in a file.

    Attributes:
        basis: (D, m) float32.
        targets: digests of the targets whose rows were known.
        digest: of all of it.
    """

    basis: Tensor
    targets: tuple[str, ...]
    digest: str


def read_directions(path: str) -> Directions:
    """What stands in a file, verified; read once while it stays the same.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        about = Path(path).stat()
    except OSError as error:
        raise _unusable(path, error) from error
    return _read(path, about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: str, *version: int) -> Directions:
    try:
        with safe_open(path, framework="pt") as handle:
            basis, about = handle.get_tensor("directions"), tensor_metadata(handle)
        digest = about.pop("content", "")
        if digest != _digest(basis, about):
            raise ValueError("checksum")
        return Directions(basis, tuple(about["targets"]), digest)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _unusable(path, error) from error


def _unusable(path: str, error: Exception) -> StoreError:
    return StoreError(
        f"{path}: missing or damaged ({error}), and the run's features hang on it. Delete it, and start the same "
        "command again: it is made again from the same rows."
    )


def _digest(basis: Tensor, about: Mapping[str, Any]) -> str:
    content = basis.contiguous().flatten().view(torch.uint8).numpy().data
    return hashlib.sha256(content).hexdigest()[:32] + fingerprint(about)
