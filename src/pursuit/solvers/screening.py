"""Finding the atom that correlates most with a residual, for many residuals at one reading of the atoms.

A product of all atoms with one residual is bound by memory, a product with many residuals by arithmetic. So a pursuit
runs ahead on a shortlist of atoms, and `Screen.products` then shows, for all its residuals together and with a bound
on the error, which atoms outside of the shortlist could have been better.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from pursuit.solvers.rows import RowMatrix, TensorRows, check_matrix, gathered_dots, map_blocks, pass_rows, row_dots

SHORTLIST = 1024  # rows; more: fewer choices are missed, and every step costs more
FEW_RESIDUALS = 4  # fewer are faster one by one
THERE_AT_ONCE = 1 << 27  # numbers of a copy on a GPU in another type
CHUNK = 1024  # features summed at once: the bound on the error grows with them
TIE = 1e-12  # correlations that differ by less, relative to ‖f‖ ‖r‖, are equal


class Screen:
    """Correlations of the atoms F (n, d) with residuals of a target c (d,).

    Attributes:
        base: (n,) float64, F c; equal rows have equal bits.
        largest_norm: the largest row norm of F.
        kind: float32, or float64 where that is not precise enough.
    """

    def __init__(self, atoms: RowMatrix, target: np.ndarray, memory_bytes: int) -> None:
        self.rows, self.width = check_matrix(atoms, "atoms")
        self.atoms, self.memory_bytes = atoms, memory_bytes
        self.base, squares = np.empty(self.rows), np.empty(self.rows)
        self.there = _on_a_gpu(atoms)
        self._held = self._hold()
        if self.there is not None:
            self._look_there(target, squares)
        else:
            self._look(target, squares)
        unusable = np.flatnonzero(~np.isfinite(squares) | ~np.isfinite(self.base))
        if len(unusable):
            raise ValueError(f"atoms: row {unusable[0]} holds NaN, infinity or numbers too large to square")
        self.largest_norm = float(np.sqrt(squares.max(initial=0.0)))
        self.kind: type = np.float32
        if not 1e-12 < self.largest_norm < 1e12:
            self.sharpen()

    def _look(self, target: np.ndarray, squares: np.ndarray) -> None:
        fill = self._held is not None and self._held is not self.atoms
        for start, stop, part in map_blocks(self.atoms, partial(_first_look, target, fill), pass_rows(self.width)):
            self.base[start:stop], squares[start:stop] = part[:2]
            if fill:
                with np.errstate(over="ignore"):
                    self._held[start:stop] = part[2]

    def _look_there(self, target: np.ndarray, squares: np.ndarray) -> None:
        assert self.there is not None
        goal = torch.from_numpy(target).to(self.there.device)
        step = max(1, THERE_AT_ONCE // max(1, self.width))
        for start in range(0, self.rows, step):
            block = self.there[start : start + step].double()
            self.base[start : start + step] = (block * goal).sum(dim=1).cpu().numpy()
            squares[start : start + step] = block.square().sum(dim=1).cpu().numpy()

    def _hold(self) -> Any:
        """A place for the atoms in float32: the atoms themselves, a copy, or none where it does not fit."""
        if isinstance(self.atoms, np.ndarray) and self.atoms.dtype == np.float32 and self.atoms.flags.c_contiguous:
            return self.atoms
        # otherwise products are made where the rows lie
        here = getattr(self.atoms, "map_blocks", None) is None and self.there is None
        fits = here and 4 * self.rows * self.width <= self.memory_bytes // 2
        return np.empty((self.rows, self.width), np.float32) if fits else None

    def sharpen(self) -> None:
        """From now on take products in float64: too many atoms were within the error of float32."""
        self._held, self.kind = None, np.float64

    @property
    def most_residuals(self) -> int:
        """How many residuals `products` takes within the memory bound."""
        return int(np.clip(self.memory_bytes // 8 // max(1, 8 * self.rows), 1, 128))

    @property
    def shortlist_size(self) -> int:
        """How many atoms a shortlist holds within the memory bound."""
        return int(np.clip(self.memory_bytes // 4 // max(1, 8 * self.width), 8, SHORTLIST))

    def gather(self, atoms: np.ndarray) -> np.ndarray:
        """(m, d) rows in the precision of the products."""
        source = self.atoms if self._held is None else self._held
        return np.ascontiguousarray(source[atoms], dtype=self.kind)

    def products(self, residuals: np.ndarray) -> np.ndarray:
        """R Fᵀ (s, n) for residuals R (s, d); `error` bounds how far each entry is off."""
        if self.there is not None:
            return np.stack([self._product_there(residual) for residual in residuals])
        source = self.atoms if self._held is None else self._held
        multiply = partial(_multiplied, residuals.astype(self.kind))
        out: np.ndarray = np.empty((len(residuals), self.rows), self.kind)
        for start, stop, part in map_blocks(source, multiply, pass_rows(self.width)):
            out[:, start:stop] = part
        return out

    def _product_there(self, residual: np.ndarray) -> np.ndarray:
        """(n,): matrix and vector, which a GPU never rounds to fewer bits as it may matrices."""
        assert self.there is not None
        kind = torch.float32 if self.kind is np.float32 else torch.float64
        vector = torch.from_numpy(residual).to(self.there.device, kind)
        step = max(1, THERE_AT_ONCE // max(1, self.width)) if self.there.dtype != kind else self.rows
        parts = []
        for block in self.there.split(step):
            part = torch.zeros(len(block), dtype=kind, device=block.device)
            for begin in range(0, self.width, CHUNK):
                part += block[:, begin : begin + CHUNK].to(kind).mv(vector[begin : begin + CHUNK])
            parts.append(part)
        found: np.ndarray = torch.cat(parts).cpu().numpy()
        return found

    def error(self, products: np.ndarray, norm: float) -> float:
        """Bound on the error of products (of `dots`) of atoms with a residual of this norm."""
        summed = min(self.width, CHUNK) + self.width // CHUNK + 4
        return float(np.finfo(products.dtype).eps) * summed * self.largest_norm * norm

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


def _on_a_gpu(atoms: RowMatrix) -> torch.Tensor | None:
    """The tensor of atoms that lie there, where every product is cheap."""
    return atoms.tensor if isinstance(atoms, TensorRows) and atoms.tensor.device.type != "cpu" else None


def dots(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right, summed in chunks: of 8,192 features the error is then bounded by an eighth."""
    out: np.ndarray = left[:, :CHUNK] @ right[:CHUNK]
    for start in range(CHUNK, left.shape[1], CHUNK):
        out += left[:, start : start + CHUNK] @ right[start : start + CHUNK]
    return out


def _first_look(target: np.ndarray, keep: bool, rows: np.ndarray, _: int) -> list[np.ndarray]:
    """Correlations with the target and squared norms of a block of rows, and the rows if they are to be kept."""
    block = np.ascontiguousarray(rows, dtype=np.float64)
    return [row_dots(block, target), np.einsum("ij,ij->i", block, block), *([rows] if keep else [])]


def _multiplied(residuals: np.ndarray, rows: np.ndarray, _: int) -> np.ndarray:
    """(s, rows) products in the precision of the residuals."""
    block = np.ascontiguousarray(rows, dtype=residuals.dtype)
    few = len(residuals) < FEW_RESIDUALS
    return np.stack([dots(block, residual) for residual in residuals]) if few else dots(residuals, block.T)
