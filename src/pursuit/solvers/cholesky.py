"""A Cholesky factor that grows and shrinks one row at a time."""

from __future__ import annotations

import copy

import numpy as np
from scipy.linalg import qr_delete
from scipy.linalg.blas import dtpsv


class GrowingCholesky:
    """The factor L of a symmetric positive definite matrix A = L Lᵀ of size (m, m), with m changing by one.

    `append` and `delete` cost O(m²). L is stored row after row without its zeros, so that appending moves nothing.
    """

    def __init__(self) -> None:
        self.size = 0
        self._packed = np.zeros(64)

    @classmethod
    def of(cls, matrix: np.ndarray) -> GrowingCholesky:
        """The factor of a whole (m, m) matrix; O(m³). Raises numpy's LinAlgError where it is not positive definite."""
        factor = cls()
        factor.size = len(matrix)
        factor._packed = np.linalg.cholesky(matrix)[np.tril_indices(factor.size)]
        return factor

    def snapshot(self) -> GrowingCholesky:
        """This factor as it is now, whatever follows here; O(1), because neither way of change touches what it holds.

        To go back to it is to give up what followed: only one of the two may change from then on.
        """
        return copy.copy(self)

    def complement(self, column: np.ndarray, diagonal: float) -> tuple[np.ndarray, float]:
        """Half of an append: L⁻¹ column, and the Schur complement that the new row would have.

        Args:
            column: (m,) entries of A between the new row and those present.
            diagonal: the new row's diagonal entry of A.
        """
        if self.size == 0:
            return np.zeros(0), diagonal
        row = dtpsv(self.size, self._packed, column, trans=1)
        return row, diagonal - float(row @ row)

    def append(self, row: np.ndarray, schur: float) -> None:
        """Add the row that `complement` computed; `schur` must be positive."""
        start = self.size * (self.size + 1) // 2
        if start + self.size + 1 > len(self._packed):
            self._packed = np.concatenate([self._packed, np.zeros(len(self._packed) + self.size + 1)])
        self._packed[start : start + self.size] = row
        self._packed[start + self.size] = np.sqrt(schur)
        self.size += 1

    def delete(self, position: int) -> None:
        """Remove row and column `position` of A."""
        start = position * (position + 1) // 2
        kept_rows, kept_columns = np.tril_indices(self.size)
        lower = np.zeros((self.size, self.size))
        lower[kept_rows, kept_columns] = self._packed[: len(kept_rows)]
        tail = lower[position:, position:].T  # upper triangular; losing a column leaves one diagonal too many below
        if len(tail) > 1:
            _, upper = qr_delete(np.eye(len(tail)), tail, 0, which="col", check_finite=False)
            upper = upper[:-1] * np.where(np.diag(upper) < 0, -1.0, 1.0)[:, None]
            lower[position + 1 :, position:-1] = upper.T
        self.size -= 1
        rows, columns = np.tril_indices(self.size)
        self._packed = np.concatenate([self._packed[:start], np.delete(lower, position, axis=0)[rows, columns][start:]])

    def solve(self, right: np.ndarray) -> np.ndarray:
        """A⁻¹ right, both (m,)."""
        if self.size == 0:
            return np.zeros(0)
        return dtpsv(self.size, self._packed, dtpsv(self.size, self._packed, right, trans=1))
