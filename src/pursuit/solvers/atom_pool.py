"""The atoms of a pursuit, read in blocks: correlations with a residual, and which atoms are worth a look."""

from __future__ import annotations

import numpy as np

from pursuit.solvers.rows import RowMatrix, blocks, check_matrix, gathered_dots, rank_descending, row_dots

TIE = 1e-12  # correlations that differ by less, relative to ‖a‖ ‖r‖, are equal


class AtomPool:
    """Atoms A (n, d), which may be larger than memory.

    Attributes:
        base: (n,) float64, correlations with the target.
        distinct: (n,) bool, not zero and the first of its equals.
        largest_norm: the largest row norm.
    """

    def __init__(self, atoms: RowMatrix, target: np.ndarray, memory_bytes: int) -> None:
        self.rows, self.width = check_matrix(atoms, "atoms")
        self.atoms, self.target, self.memory_bytes = atoms, target, memory_bytes
        self.base, squares, signature = np.empty(self.rows), np.empty(self.rows), np.empty(self.rows)
        probe = np.random.default_rng(0).standard_normal(self.width)
        for start, stop, block in blocks(atoms, np.float64, memory_bytes // 4):
            self.base[start:stop] = row_dots(block, target)
            squares[start:stop] = np.einsum("ij,ij->i", block, block)
            signature[start:stop] = row_dots(block, probe)
        bad = np.flatnonzero(~np.isfinite(squares) | ~np.isfinite(self.base))
        if len(bad):
            raise ValueError(f"atoms: row {bad[0]} holds NaN, infinity or numbers too large to square")
        self.largest_norm = float(np.sqrt(squares.max(initial=0.0)))
        self.distinct = _first_of_equals(signature, squares) & (squares > 0)

    def most_correlated(
        self, residual: np.ndarray, open_atoms: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """At most `count` open atoms with the largest positive ⟨a, r⟩, best first, the lower index of equal ones.

        One float32 product with all atoms shows which can be among them; these are compared in float64.

        Returns:
            the atoms (m,) and their correlations (m,) float64.
        """
        norm = float(np.linalg.norm(residual))
        tie = TIE * self.largest_norm * norm
        scores, error = (self.base, 0.0) if residual is self.target else self._products(residual, norm)
        found = np.flatnonzero(open_atoms & (scores > tie - error))
        if len(found) > count:
            least = np.partition(scores[found], len(found) - count)[len(found) - count]
            found = found[scores[found] >= least - 2 * error - tie]
        exact = scores[found] if not error else gathered_dots(self.atoms, found, residual, self.memory_bytes)
        found, exact = found[exact > tie], exact[exact > tie]
        order = rank_descending(exact, tie)[:count]
        return found[order], exact[order]

    def _products(self, residual: np.ndarray, norm: float) -> tuple[np.ndarray, float]:
        """(n,) float64 A r and a bound on its error."""
        kind = np.float32 if 1e-12 < self.largest_norm < 1e12 else np.float64
        direction = (residual / (norm or 1.0)).astype(kind)
        if isinstance(self.atoms, np.ndarray) and self.atoms.dtype == kind:
            products = self.atoms @ direction
        else:
            parts = blocks(self.atoms, kind, self.memory_bytes // 4)
            products = np.concatenate([np.zeros(0, kind), *(block @ direction for _, _, block in parts)])
        error = 2 * float(np.finfo(kind).eps) * (self.width + 4) * self.largest_norm * norm
        return products.astype(np.float64) * norm, error

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """(m, d) float64 rows."""
        return np.ascontiguousarray(self.atoms[indices], dtype=np.float64)


def _first_of_equals(*keys: np.ndarray) -> np.ndarray:
    """(n,) bool: no earlier entry has the same keys."""
    order = np.lexsort((np.arange(len(keys[0])), *keys))
    first = np.ones(len(order), bool)
    first[order[1:]] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    return first
