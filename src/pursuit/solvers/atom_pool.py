"""The atoms of a pursuit, read in blocks: correlations with a residual, and which atoms are worth a look."""

from __future__ import annotations

from functools import partial

import numpy as np

from pursuit.solvers.rows import (
    RowMatrix,
    check_matrix,
    gathered_dots,
    map_blocks,
    pass_rows,
    rank_descending,
    release,
    row_dots,
)

TIE = 1e-12  # correlations that differ by less, relative to ‖a‖ ‖r‖, are equal
PRODUCT_BLOCKS = 4  # a product reads its rows once and need not keep them: larger blocks cost less bookkeeping


class AtomPool:
    """Atoms A (n, d), which may be larger than memory.

    Attributes:
        base: (n,) float64, correlations with the target.
        distinct: (n,) bool, not zero and the first of its equals.
        largest_norm: the largest row norm.
        kind: float32, or float64 where the rows are too long or too short for it.
        readings: how often all atoms were read.
    """

    def __init__(self, atoms: RowMatrix, target: np.ndarray, memory_bytes: int) -> None:
        self.rows, self.width = check_matrix(atoms, "atoms")
        self.atoms, self.target, self.memory_bytes = atoms, target, memory_bytes
        self.base, squares, signature = np.empty(self.rows), np.empty(self.rows), np.empty(self.rows)
        probe = np.random.default_rng(0).standard_normal(self.width)
        look = partial(_first_look, target=target, probe=probe)
        for start, stop, part in map_blocks(atoms, look, pass_rows(self.width)):
            self.base[start:stop], squares[start:stop], signature[start:stop] = part
        bad = np.flatnonzero(~np.isfinite(squares) | ~np.isfinite(self.base))
        if len(bad):
            raise ValueError(f"atoms: row {bad[0]} holds NaN, infinity or numbers too large to square")
        self.largest_norm = float(np.sqrt(squares.max(initial=0.0)))
        self.distinct = _first_of_equals(signature, squares) & (squares > 0)
        self.kind = np.float32 if 1e-12 < self.largest_norm < 1e12 else np.float64
        self.readings = 1

    def most_correlated(
        self, residual: np.ndarray, open_atoms: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """At most `count` open atoms with the largest positive ⟨a, r⟩, best first, the lower index of equal ones.

        One float32 product with all atoms shows which can be among them; these are compared in float64.

        Returns:
            the atoms (m,) and their correlations (m,) float64.
        """
        tie = TIE * self.largest_norm * float(np.linalg.norm(residual))
        scores, error = self._products(residual)
        found = np.flatnonzero(open_atoms & (scores > tie - error))
        if len(found) > count:
            least = np.partition(scores[found], len(found) - count)[len(found) - count]
            found = found[scores[found] >= least - 2 * error - tie]
        exact = self._exact(found, scores, error, residual)
        found, exact = found[exact > tie], exact[exact > tie]
        order = rank_descending(exact, tie)[:count]
        return found[order], exact[order]

    def strongest(self, residual: np.ndarray, open_atoms: np.ndarray, count: int) -> np.ndarray:
        """The atoms that `most_correlated` finds, ascending: only those at the margin are compared in float64."""
        tie = TIE * self.largest_norm * float(np.linalg.norm(residual))
        scores, error = self._products(residual)
        found = np.flatnonzero(open_atoms & (scores > tie - error))
        least = tie
        if len(found) > count:
            least = max(tie, float(np.partition(scores[found], len(found) - count)[len(found) - count]))
        slack = 2 * error + tie
        safe = found[scores[found] > least + slack]
        margin = found[np.abs(scores[found] - least) <= slack]
        exact = self._exact(margin, scores, error, residual)
        margin, exact = margin[exact > tie], exact[exact > tie]
        return np.sort(np.concatenate([safe, margin[rank_descending(exact, tie)[: count - len(safe)]]]))

    def _exact(self, atoms: np.ndarray, scores: np.ndarray, error: float, residual: np.ndarray) -> np.ndarray:
        return scores[atoms] if not error else gathered_dots(self.atoms, atoms, residual, self.memory_bytes)

    def _products(self, residual: np.ndarray) -> tuple[np.ndarray, float]:
        """(n,) A r and a bound on its error."""
        if residual is self.target:
            return self.base, 0.0
        self.readings += 1
        norm = float(np.linalg.norm(residual))
        direction = (residual / (norm or 1.0)).astype(self.kind)
        products = np.empty(self.rows)
        dots = partial(_dots, direction=direction)
        for start, stop, part in map_blocks(self.atoms, dots, PRODUCT_BLOCKS * pass_rows(self.width)):
            products[start:stop] = part
        products *= norm
        return products, 2 * float(np.finfo(self.kind).eps) * (self.width + 4) * self.largest_norm * norm

    def gather(self, indices: np.ndarray, kind: type = np.float64) -> np.ndarray:
        """(m, d) rows."""
        rows: np.ndarray = np.ascontiguousarray(self.atoms[indices], dtype=kind)
        release(self.atoms)
        return rows


def _first_look(rows: np.ndarray, _: int, *, target: np.ndarray, probe: np.ndarray) -> np.ndarray:
    """(3, rows): correlations with the target, squared norms, and a number that equal rows share."""
    block = np.ascontiguousarray(rows, dtype=np.float64)
    return np.stack([row_dots(block, target), np.einsum("ij,ij->i", block, block), row_dots(block, probe)])


def _dots(rows: np.ndarray, _: int, *, direction: np.ndarray) -> np.ndarray:
    """(rows,) products in the precision of the direction."""
    return np.ascontiguousarray(rows, dtype=direction.dtype) @ direction


def _first_of_equals(*keys: np.ndarray) -> np.ndarray:
    """(n,) bool: no earlier entry has the same keys."""
    order = np.lexsort((np.arange(len(keys[0])), *keys))
    first = np.ones(len(order), bool)
    first[order[1:]] = np.any([np.diff(key[order]) != 0 for key in keys], axis=0)
    return first
