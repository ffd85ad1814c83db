"""Finding the atom that correlates most with a residual, for many residuals at one reading of the atoms.

A product of all atoms with one residual is bound by memory, a product with many residuals by arithmetic, and low
precision makes that cheap too. So a pursuit runs ahead on a shortlist of atoms, and `Screen.products` then shows, for
all its residuals together and with a bound on the error, which atoms outside of the shortlist could have been better.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from pursuit.solvers.rows import RowMatrix, check_matrix, gathered_dots, map_blocks, pass_rows, row_dots

SHORTLIST = 1024  # longer: fewer choices are missed, and every step costs more
TIE = 1e-12  # correlations that differ by less, relative to ‖f‖ ‖r‖, are equal


class Screen:
    """Correlations of the atoms F (n, d) with residuals of a target c (d,).

    Products are taken with F − 1 mᵀ, m a multiple of c: atoms with a large common part keep small errors that way.

    Attributes:
        base: (n,) float64, F c; equal rows have equal bits.
        largest_norm: the largest row norm of F.
    """

    def __init__(self, atoms: RowMatrix, target: np.ndarray, memory_bytes: int) -> None:
        self.rows, self.width = check_matrix(atoms, "atoms")
        self.atoms, self.memory_bytes = atoms, memory_bytes
        self._shift = _shift(atoms, target)
        local = getattr(atoms, "map_blocks", None) is None  # otherwise products are made where the rows lie
        fits = local and 2 * self.rows * self.width <= memory_bytes // 2 and _fast_bfloat16()
        self._local, self._dtype = local, torch.bfloat16 if fits else torch.float32
        self._copy = torch.empty((self.rows, self.width), dtype=torch.bfloat16) if fits else None
        self.base, squares = self._read(target)
        unusable = np.flatnonzero(~np.isfinite(squares) | ~np.isfinite(self.base))
        if len(unusable):
            raise ValueError(f"atoms: row {unusable[0]} holds NaN, infinity or numbers too large to square")
        self.largest_norm = float(np.sqrt(squares.max(initial=0.0)))
        self._largest_shifted = self.largest_norm + float(np.linalg.norm(self._shift))
        if not 1e-12 < self.largest_norm < 1e12:
            self._copy, self._dtype = None, torch.float64

    def _read(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """F c and the squared row norms; fills the working copy on the way."""
        base, squares = np.empty(self.rows), np.empty(self.rows)
        look = partial(_first_look, target, self._shift, self._copy is not None)
        for start, stop, (numbers, shifted) in map_blocks(self.atoms, look, pass_rows(self.width)):
            base[start:stop], squares[start:stop] = numbers
            if self._copy is not None and shifted is not None:
                self._copy[start:stop] = shifted
        return base, squares

    @property
    def most_residuals(self) -> int:
        """How many residuals `products` takes within the memory bound."""
        return int(np.clip(self.memory_bytes // 8 // max(1, 8 * self.rows), 1, 128))

    @property
    def shortlist_type(self) -> type:
        """Precision of a shortlist's rows."""
        return np.float64 if self._dtype == torch.float64 else np.float32

    @property
    def shortlist_size(self) -> int:
        """How many atoms a shortlist holds within the memory bound."""
        return int(np.clip(self.memory_bytes // 4 // max(1, 8 * self.width), 8, SHORTLIST))

    def products(self, residuals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """R Fᵀ for residuals R (s, d): (s, n) values, and (s,) bounds on the error of each row of them."""
        plain = isinstance(self.atoms, np.ndarray) and self.atoms.dtype in (np.float32, np.float64)
        if plain and len(residuals) == 1 and self._dtype != torch.float64:
            return self._one_product(residuals[0])
        wide = torch.float64 if self._dtype == torch.float64 else torch.float32
        out = torch.empty((len(residuals), self.rows), dtype=wide)
        largest = np.zeros(len(residuals))
        for start, stop, part in self._blocks(residuals):
            out[:, start:stop] = part
            low, high = torch.aminmax(out[:, start:stop], dim=1)
            largest = np.maximum(largest, torch.maximum(-low, high).to(torch.float64).numpy())
        common = residuals @ self._shift
        out += torch.from_numpy(common).to(wide)[:, None]
        unit, summing = torch.finfo(self._dtype).eps / 2, torch.finfo(wide).eps * (self.width + 4)
        norms = np.linalg.norm(residuals, axis=1)
        errors = (2.1 * unit + summing) * self._largest_shifted * norms + unit * largest + summing * np.abs(common)
        return out.numpy(), errors

    def _one_product(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`products` of one residual with the atoms as they are given."""
        assert isinstance(self.atoms, np.ndarray)
        summing = float(np.finfo(self.atoms.dtype).eps) * (self.width + 4)
        error = summing * self.largest_norm * float(np.linalg.norm(residual))
        return (self.atoms @ residual.astype(self.atoms.dtype))[None], np.array([error])

    def sharpen(self) -> None:
        """From now on take products in float32: too many atoms were within the error of bfloat16."""
        if self._dtype == torch.bfloat16:
            self._copy, self._dtype = None, torch.float32
            if self._local and 4 * self.rows * self.width <= self.memory_bytes // 2:
                copy = torch.empty((self.rows, self.width), dtype=torch.float32)
                shift = partial(_shifted, self._shift)
                for start, stop, block in map_blocks(self.atoms, shift, pass_rows(self.width)):
                    copy[start:stop] = block
                self._copy = copy

    def _blocks(self, residuals: np.ndarray) -> Iterator[tuple[int, int, torch.Tensor]]:
        """R (F − 1 mᵀ)ᵀ in the working precision, block by block."""
        if self._copy is not None:
            yield 0, self.rows, torch.from_numpy(residuals).to(self._dtype) @ self._copy.T
            return
        kind = np.float64 if self._dtype == torch.float64 else np.float32
        multiply = partial(_multiplied, residuals.astype(kind), self._shift)
        for start, stop, part in map_blocks(self.atoms, multiply, pass_rows(self.width)):
            yield start, stop, torch.from_numpy(part)

    def best(
        self, scores: np.ndarray, error: float, candidates: np.ndarray, residual: np.ndarray, positive: bool
    ) -> int:
        """The candidate with the largest (absolute) correlation with a residual; the lowest index of equal ones.

        Args:
            scores: (m,) approximate correlations, already absolute unless `positive`.
            error: bound on their error; 0 for exact ones.
            candidates: (m,) the atoms that they belong to, in any order.
        """
        tie = TIE * self.largest_norm * float(np.linalg.norm(residual))
        near = np.flatnonzero(scores >= scores.max() - 2 * error - tie)
        close, exact = candidates[near], scores[near]
        if len(near) > 1 and error:
            exact = gathered_dots(self.atoms, close, residual, self.memory_bytes)
            exact = exact if positive else np.abs(exact)
        return int(close[exact >= exact.max() - tie].min())


def _first_look(
    target: np.ndarray, shift: np.ndarray, keep: bool, rows: np.ndarray, _: int
) -> tuple[np.ndarray, torch.Tensor | None]:
    """(2, rows): correlations with the target and squared norms; and the shifted rows, if they are kept."""
    block = np.ascontiguousarray(rows, dtype=np.float64)
    numbers = np.stack([row_dots(block, target), np.einsum("ij,ij->i", block, block)])
    return numbers, torch.from_numpy(block - shift) if keep else None


def _shifted(shift: np.ndarray, rows: np.ndarray, _: int) -> torch.Tensor:
    return torch.from_numpy(np.asarray(rows, np.float64) - shift)


def _multiplied(residuals: np.ndarray, shift: np.ndarray, rows: np.ndarray, _: int) -> np.ndarray:
    """(s, rows) products in the precision of the residuals."""
    return residuals @ (np.asarray(rows, np.float64) - shift).astype(residuals.dtype).T


def _shift(atoms: RowMatrix, target: np.ndarray) -> np.ndarray:
    """The multiple of the target that lies nearest to the atoms, judged by a few of them."""
    square = float(target @ target)
    if not len(target) or not atoms.shape[0] or not square > 0:
        return np.zeros_like(target)
    few = atoms[np.unique(np.linspace(0, atoms.shape[0] - 1, 32).astype(np.int64))]
    share = float(row_dots(few, target).mean()) / square
    return share * target if np.isfinite(share) else np.zeros_like(target)


def _fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())
