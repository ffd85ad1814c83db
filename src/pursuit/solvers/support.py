"""A support that grows and shrinks by many atoms at a time, with its non-negative weights."""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dpotrf, dtrtri

from pursuit.solvers.atom_pool import AtomPool
from pursuit.solvers.candidates import Fit
from pursuit.solvers.nnls import nnls

DEPENDENT = 1e-9  # a candidate nearer to the span of the support than this share of its square cannot help it
TELLING = 1e-3  # float32 cannot tell how much is left of a candidate when it is less than this
EQUAL = 1e-12  # gains that differ by less, relative to the largest, are equal


class Support:
    """Atoms in use, with all that is needed to add others: everything in float64, and written once.

    For m atoms with rows A and A Aᵀ = L Lᵀ it keeps A, A Aᵀ and L⁻¹. With L⁻¹, what the span of the support leaves of p
    candidates is a product of matrices, O(m² p), the weights follow in O(m²), and so does what the removal of each atom
    would cost.

    Attributes:
        size: m.
        weights: (m,) positive.
        residual: (d,) goal − Σ w_i a_i.
        norm: its length.
    """

    def __init__(self, goal: np.ndarray, capacity: int) -> None:
        self.goal, self.size = goal, 0
        self.weights, self.residual, self.norm = np.zeros(0), goal, float(np.linalg.norm(goal))
        self._atoms, self._right = np.empty(capacity, np.int64), np.empty(capacity)
        self._rows, self._coarse = np.empty((capacity, len(goal))), np.empty((capacity, len(goal)), np.float32)
        self._gram, self._inverse = np.empty((capacity, capacity)), np.zeros((capacity, capacity))

    @property
    def atoms(self) -> np.ndarray:
        """(m,) int64, in the order in which they came."""
        return self._atoms[: self.size]

    def copy(self) -> Support:
        """An independent copy."""
        m, twin = self.size, Support(self.goal, len(self._atoms))
        twin.size, twin.weights, twin.residual, twin.norm = m, self.weights, self.residual, self.norm
        for name in ("_atoms", "_right", "_rows", "_coarse"):
            getattr(twin, name)[:m] = getattr(self, name)[:m]
        for name in ("_gram", "_inverse"):
            getattr(twin, name)[:m, :m] = getattr(self, name)[:m, :m]
        return twin

    def join(self, pool: AtomPool, atoms: np.ndarray, rows: np.ndarray, most: int, enough: float, tie: float) -> int:
        """Add candidates one after another, each the one that shortens the residual most; then solve for all weights.

        What is left of a candidate outside of the span of the support and of those that joined before decides: the
        residual's square falls by ⟨a, r⟩² / ‖rest of a‖² (orthogonal least squares, Chen, Billings and Luo 1989). Only
        positive ⟨a, r⟩ count. Atoms whose weight turns out negative leave. The choice is made in float32, unless too
        little is left of a candidate for that; all else in float64.

        Args:
            atoms: (p,) candidates, ascending; of equal gains the first wins.
            rows: (p, d), in the pool's precision.
            most: at most so many join.
            enough: it ends when the residual would be shorter than this.
            tie: correlations up to this are rounding.

        Returns:
            how many joined.
        """
        chosen = self._choose(rows, most, enough, tie)
        if chosen is None:
            chosen = self._choose(pool.gather(atoms), most, enough, tie)
        if chosen is None or not len(chosen):
            return 0
        return self._extend(atoms[chosen], pool.gather(atoms[chosen]))

    def _choose(self, rows: np.ndarray, most: int, enough: float, tie: float) -> np.ndarray | None:
        """Places of the candidates to join, in order; None where the precision of the rows is too low."""
        m, kind = self.size, rows.dtype
        own = self._coarse if kind == np.float32 else self._rows
        half = self._inverse[:m, :m].astype(kind) @ (own[:m] @ rows.T)
        inner = rows @ rows.T
        correlations = rows @ (self.residual / self.norm).astype(kind)
        return _forward(inner, half, correlations, most, (enough / self.norm) ** 2, tie / self.norm)

    def _extend(self, atoms: np.ndarray, rows: np.ndarray) -> int:
        """Take in atoms and solve; returns how many they are, or 0 when they depend linearly on the support."""
        m, s = self.size, slice(self.size, self.size + len(atoms))
        cross = self._rows[:m] @ rows.T
        half = self._inverse[:m, :m] @ cross
        inner = rows @ rows.T
        factor, failed = dpotrf(inner - half.T @ half, lower=1, clean=1)
        if failed:
            return 0
        own = dtrtri(factor, lower=1)[0]
        self._atoms[s], self._rows[s], self._coarse[s], self._right[s] = atoms, rows, rows, rows @ self.goal
        self._gram[s, :m], self._gram[:m, s], self._gram[s, s] = cross.T, cross, inner
        self._inverse[s, :m], self._inverse[s, s] = -own @ (half.T @ self._inverse[:m, :m]), own
        self.size = s.stop
        self._solve(self.norm)
        return len(atoms)

    def prune(self, size: int, rounds: int = 2) -> None:
        """Drop the atoms whose removal alone lengthens the residual least until `size` are left, in a few rounds."""
        for left in range(rounds, 0, -1):
            excess = self.size - size
            if excess <= 0:
                break
            inverse = self._inverse[: self.size, : self.size]
            costs = self.weights**2 / np.einsum("ij,ij->j", inverse, inverse)
            cheapest = np.argsort(costs, kind="stable")[: -(-excess // left)]
            self._keep(np.setdiff1d(np.arange(self.size), cheapest))
            self._solve(np.inf)

    def fit(self) -> Fit:
        """The support with its exact weights."""
        m = self.size
        weights = nnls(self._gram[:m, :m], self._right[:m], start=np.ones(m))
        used = np.flatnonzero(weights)
        used = used[np.argsort(self._atoms[used])]
        residual = self.goal - weights[used] @ self._rows[used]
        return Fit(self._atoms[used], weights[used], residual, float(np.linalg.norm(residual)))

    def _solve(self, worst: float) -> None:
        """Weights of least squares while they are positive; those that are not leave.

        All negative ones leave at once; where the residual is then `worst` or longer, by non-negative least squares.
        """
        parts: list[np.ndarray] = [self._atoms, self._right, self._rows, self._coarse]
        before: tuple[list[np.ndarray], np.ndarray] | None = None
        while True:
            m = self.size
            inverse = self._inverse[:m, :m]
            self.weights = (inverse @ self._right[:m]) @ inverse
            if not m or self.weights.min() > 0:
                break
            if before is None:
                before = [part[:m].copy() for part in parts], self._gram[:m, :m].copy()
            self._keep(np.flatnonzero(self.weights > 0))
        self._look()
        if before is not None and self.norm >= worst:
            self.size = m = len(before[1])
            for part, values in zip(parts, before[0], strict=True):
                part[:m] = values
            self._gram[:m, :m] = before[1]
            self.weights = nnls(self._gram[:m, :m], self._right[:m], start=np.ones(m))
            self._keep(np.flatnonzero(self.weights))
            self._look()

    def _look(self) -> None:
        self.residual = self.goal - self.weights @ self._rows[: self.size]
        self.norm = float(np.linalg.norm(self.residual))

    def _keep(self, places: np.ndarray) -> None:
        """Only the atoms at these places stay."""
        m = len(places)
        first = int(np.argmax(np.append(places, -1) != np.arange(m + 1)))  # those before it stay where they are
        moved = places[first:]
        self._atoms[first:m], self._right[first:m] = self._atoms[moved], self._right[moved]
        self._rows[first:m], self._coarse[first:m] = self._rows[moved], self._coarse[moved]
        self._gram[:m, :m] = self._gram[np.ix_(places, places)]
        self.size, self.weights = m, self.weights[places]
        if m:
            factor, _ = dpotrf(self._gram[:m, :m], lower=1, clean=1)
            self._inverse[:m, :m] = dtrtri(factor, lower=1)[0]


def _forward(
    inner: np.ndarray, half: np.ndarray, correlations: np.ndarray, most: int, enough: float, tie: float
) -> np.ndarray | None:
    """Forward selection among p candidates by what the span of the support leaves of them.

    Args:
        inner: (p, p) their inner products.
        half: (m, p) their parts within the span of the support, in an orthonormal basis of it.
        correlations: (p,) with the residual, at unit length.
        enough: the residual's square at which it ends.

    Returns:
        the candidates chosen (s,), in order; None where one has less left than the precision can tell.
    """
    rest = inner - half.T @ half
    whole, left = inner.diagonal(), rest.diagonal().copy()
    exact = inner.dtype == np.float64
    least = (DEPENDENT if exact else TELLING) * whole
    usable = left > least
    if not exact and not usable.all():
        return None
    most = min(most, len(whole))
    columns = np.empty((most, len(whole)), inner.dtype)
    square = 1.0
    chosen: list[int] = []
    while len(chosen) < most and square > enough:
        gains = np.where(usable & (correlations > tie), correlations * correlations / np.where(usable, left, 1), 0)
        largest = gains.max(initial=0.0)
        if not largest > 0:
            break
        best = int(np.argmax(gains >= largest * (1 - EQUAL)))
        size = len(chosen)
        root = np.sqrt(left[best])
        column = (rest[best] - columns[:size, best] @ columns[:size]) / root
        columns[size] = column
        square -= gains[best]
        correlations = correlations - column * (correlations[best] / root)
        left = left - column * column
        chosen.append(best)
        usable[best] = False
        usable &= left > least
    return np.array(chosen, dtype=np.int64)
