"""Candidates for a support, and the best non-negative weights of some of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pursuit.solvers.atom_pool import AtomPool
from pursuit.solvers.nnls import nnls


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

    @classmethod
    def of_nothing(cls, goal: np.ndarray) -> Fit:
        """The empty support."""
        return cls(np.zeros(0, np.int64), np.zeros(0), goal, float(np.linalg.norm(goal)))


class Candidates:
    """Candidate atoms (ascending), their rows, inner products and correlations with a goal."""

    def __init__(self, pool: AtomPool, atoms: np.ndarray, goal: np.ndarray) -> None:
        self.atoms, self.goal = np.unique(atoms).astype(np.int64), goal
        self.rows = pool.gather(self.atoms)
        self.gram = self.rows @ self.rows.T
        self.right = np.einsum("ij,j->i", self.rows, goal)

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
