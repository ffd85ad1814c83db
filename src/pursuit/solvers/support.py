"""Choosing a support among candidates from inner products alone: growing it greedily, fitting it, shrinking it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dpotrf, dpotri

from pursuit.solvers.atom_pool import TIE, AtomPool
from pursuit.solvers.cholesky import GrowingCholesky
from pursuit.solvers.nnls import nnls

DEPENDENT = 1e-9  # a candidate nearer to the span of the support than this share of its square cannot help it


@dataclass(frozen=True)
class Fit:
    """A support with its non-negative weights.

    Attributes:
        atoms: (m,) int64, ascending.
        weights: (m,) float64, positive.
        residual: (d,) float64, goal − Σ w_i a_i.
        norm: its length.
    """

    atoms: np.ndarray
    weights: np.ndarray
    residual: np.ndarray
    norm: float


class Candidates:
    """Candidate atoms (ascending), their rows, inner products and correlations with a goal."""

    def __init__(self, pool: AtomPool, atoms: np.ndarray, goal: np.ndarray) -> None:
        self.atoms, self.goal, self.scale = np.unique(atoms).astype(np.int64), goal, pool.largest_norm
        self.rows = pool.gather(self.atoms)
        self.gram = self.rows @ self.rows.T
        self.right = np.einsum("ij,j->i", self.rows, goal)

    def places(self, atoms: np.ndarray) -> np.ndarray:
        """Where atoms stand among the candidates."""
        return np.searchsorted(self.atoms, atoms)

    def solve(self, places: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        """(len(places),) non-negative weights of some candidates."""
        return nnls(self.gram[np.ix_(places, places)], self.right[places], start=start)

    def fit(self, places: np.ndarray) -> Fit:
        """Non-negative least squares on some candidates; those of weight zero leave."""
        places = np.sort(places)
        weights = self.solve(places, np.ones(len(places)))
        places, weights = places[weights > 0], weights[weights > 0]
        residual = self.goal - weights @ self.rows[places]
        return Fit(self.atoms[places], weights, residual, float(np.linalg.norm(residual)))

    def grow(self, places: np.ndarray, size: int, floor: float) -> np.ndarray:
        """Add candidates one by one, the most correlated first, solving again each time: up to `size` in all.

        Non-negative orthogonal matching pursuit on a Cholesky factor that grows by a row: O(m² + M) a step for m atoms
        of M candidates, and O(m M) for the correlations. An atom whose weight turns negative leaves for good. It ends
        early when the best correlation is below `floor`, the level under which atoms that are no candidates may lie.
        """
        chosen = list(self.fit(places).atoms) if len(places) else []
        chosen = self.places(np.array(chosen, dtype=np.int64)).tolist()
        factor = GrowingCholesky.of(self.gram[np.ix_(chosen, chosen)])
        columns = np.empty((size + 1, len(self.atoms)))
        columns[: len(chosen)] = self.gram[chosen]
        weights = factor.solve(self.right[chosen])
        banned = np.zeros(len(self.atoms), bool)
        banned[chosen] = True
        tie = TIE * self.scale * float(np.linalg.norm(self.goal))
        while len(chosen) < size:
            scores = np.where(banned, -np.inf, self.right - weights @ columns[: len(chosen)])
            best = int(np.argmax(scores >= scores.max() - tie))
            if scores[best] <= tie or (scores[best] < floor and len(chosen) > len(places)):
                break
            banned[best] = True
            half, schur = factor.complement(self.gram[best, chosen], float(self.gram[best, best]))
            if schur <= DEPENDENT * self.gram[best, best]:
                continue
            factor.append(half, schur)
            columns[len(chosen)] = self.gram[best]
            chosen.append(best)
            weights = factor.solve(self.right[chosen])
            while len(chosen) and weights.min() < 0:
                worst = int(weights.argmin())
                factor.delete(worst)
                columns[worst : len(chosen) - 1] = columns[worst + 1 : len(chosen)]
                del chosen[worst]
                weights = factor.solve(self.right[chosen])
        return np.array(chosen, dtype=np.int64)

    def without_cheapest(self, places: np.ndarray, count: int) -> np.ndarray:
        """The places without those `count` whose removal alone lengthens the residual least."""
        factor, _ = dpotrf(self.gram[np.ix_(places, places)], lower=1)
        inverse, _ = dpotri(factor, lower=1)
        costs = self.solve(places, np.ones(len(places))) ** 2 / inverse.diagonal()
        return np.sort(places[np.argsort(costs, kind="stable")[count:]])
