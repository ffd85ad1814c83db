"""Non-negative least squares from inner products alone."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpotrf, dpotrs, dpstrf

from pursuit.solvers.rows import Vector, as_array

DEPENDENT = 1e-11  # a row nearer to the span of the others than this share of its square adds nothing to it
NOISE = 1e-13  # gradients below this, relative to their own terms, are rounding


def nnls(
    gram: Vector,
    correlations: Vector,
    *,
    start: Vector | None = None,
    iterations: int | None = None,
) -> np.ndarray:
    """Solve min ‖b − Aᵀ w‖², w ≥ 0, from G = A Aᵀ and A b.

    The active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, chapter 23) in the Gram form of
    Bro and de Jong (1997), entering many variables at once [ours]: those with a positive gradient join as far as they
    are linearly independent, negative ones leave, and the step is taken back and halved when the objective did not
    fall; a single variable enters exactly as in the original. The objective falls in every step, so it ends. The
    positive weights belong to linearly independent rows: there are at most rank(A) of them. Of equal rows the first
    gets the weight.

    O(p³) for each exchange, with p the number of positive weights; mostly 5 to 20 exchanges from nothing, few from a
    `start` that is nearly right. Exact to the precision that inner products allow: the error of w is about 1e-16 times
    the square of the condition number of the rows in use.

    Args:
        gram: (m, m), symmetric, positive semi-definite; numpy or torch, as the others.
        correlations: (m,).
        start: (m,) weights or bool mask; the positive ones are tried first.
        iterations: at most so many exchanges; 10 m + 100 without.

    Returns:
        (m,) float64, at least 0.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity.
        RuntimeError: `iterations` did not suffice.
    """
    gram, right = as_array(gram), as_array(correlations)
    if right.ndim != 1 or gram.shape != (len(right), len(right)):
        raise ValueError(f"gram must be (m, m) and correlations (m,); they are {gram.shape} and {right.shape}")
    if not (np.isfinite(right).all() and np.isfinite(gram).all()):
        raise ValueError("gram or correlations hold NaN or infinity")
    lengths = np.sqrt(gram.diagonal())
    used = np.flatnonzero(lengths > 0)
    scale = 1 / lengths[used]  # rows of unit length: thresholds mean the same for all
    problem = _Problem(gram[np.ix_(used, used)] * np.outer(scale, scale), right[used] * scale)
    begin = np.zeros(0, np.int64) if start is None else np.flatnonzero(as_array(start)[used] > 0)
    out = np.zeros(len(right))
    out[used] = scale * _solve(problem, begin, 10 * len(right) + 100 if iterations is None else iterations)
    return out


def _solve(problem: _Problem, begin: np.ndarray, iterations: int) -> np.ndarray:
    """Exchanges from a first support until no gradient is positive."""
    weights = problem.exchange(np.zeros(0, np.int64), begin)
    weights = weights if problem.objective(weights) < 0 else np.zeros(len(weights))
    batch = len(weights)
    for _ in range(iterations):
        rising = problem.rising(weights)
        if not len(rising):
            return weights
        batch = min(batch, len(rising))
        support = np.flatnonzero(weights)
        if batch > 1:
            trial = problem.exchange(support, np.sort(rising[:batch]))
            if problem.falls(weights, trial):
                weights, batch = trial, 2 * batch
            else:
                batch //= 2
            continue
        single = problem.enter_first(weights, rising)
        if single is None:
            return weights
        weights, batch = single, 4
    raise RuntimeError(f"non-negative least squares of {len(weights)} variables did not end")


class _Problem:
    """min ½ wᵀ G w − wᵀ c, w ≥ 0, with ones on the diagonal of G."""

    def __init__(self, gram: np.ndarray, right: np.ndarray) -> None:
        self.gram, self.right = gram, right
        self.visited: set[bytes] = set()

    def objective(self, weights: np.ndarray) -> float:
        """At a solution on its own support, where wᵀ G w = wᵀ c."""
        return -0.5 * float(weights @ self.right)

    def falls(self, before: np.ndarray, after: np.ndarray) -> bool:
        """Whether the objective falls by more than rounding."""
        old, new = self.objective(before), self.objective(after)
        return new < old - 1e-15 * abs(old)

    def rising(self, weights: np.ndarray) -> np.ndarray:
        """Variables at zero with a positive gradient, the steepest first."""
        support = np.flatnonzero(weights)
        explained = self.gram[:, support] @ weights[support]
        size = np.abs(self.right) + weights.sum()
        gradient = self.right - explained
        usable = (gradient > NOISE * size) & (weights == 0)
        found = np.flatnonzero(usable)
        return found[np.argsort(-gradient[found], kind="stable")]

    def exchange(self, support: np.ndarray, entering: np.ndarray) -> np.ndarray:
        """Solve on the support with the independent ones of those entering, dropping negative weights at once."""
        chosen = self._independent(support, entering)
        while len(chosen):
            solution = self._solve(chosen)
            if solution is None:
                break
            if solution.min() > 0:
                return self._spread(chosen, solution)
            chosen = chosen[solution > 0]
        return np.zeros(len(self.right))

    def enter_first(self, weights: np.ndarray, rising: np.ndarray) -> np.ndarray | None:
        """Lawson and Hanson's step with the first variable that can enter; None when none can."""
        support = np.flatnonzero(weights)
        for variable in rising:
            chosen = self._independent(support, np.array([variable]))
            if len(chosen) == len(support):
                continue
            trial = self._inward(weights, chosen)
            if trial is None or not trial[variable] > 0:
                continue
            support_bytes = np.packbits(trial > 0).tobytes()
            if support_bytes not in self.visited:  # the objective falls, perhaps by less than it is precise to
                self.visited.add(support_bytes)
                return trial
        return None

    def _inward(self, weights: np.ndarray, chosen: np.ndarray) -> np.ndarray | None:
        """Move to the solution on `chosen`, stopping at each bound on the way and dropping what reached it."""
        current = weights.copy()
        while len(chosen):
            solution = self._solve(chosen)
            if solution is None:
                return None
            if solution.min() > 0:
                return self._spread(chosen, solution)
            negative = solution <= 0
            here = current[chosen]
            steps = here[negative] / (here[negative] - solution[negative])
            here = here + steps.min() * (solution - here)
            here[np.flatnonzero(negative)[steps <= steps.min()]] = 0.0
            here = np.maximum(here, 0.0)
            current = self._spread(chosen, here)
            chosen = chosen[here > 0]
        return None

    def _independent(self, support: np.ndarray, entering: np.ndarray) -> np.ndarray:
        """The support with those entering that are linearly independent of it and of each other, in order."""
        inner = self.gram[np.ix_(entering, entering)]
        if len(support):
            factor, failed = dpotrf(self.gram[np.ix_(support, support)], lower=1, clean=1)
            if failed:
                return support
            cross = solve_triangular(factor, self.gram[np.ix_(support, entering)], lower=True)
            inner -= cross.T @ cross
        if len(entering) == 1:
            kept = entering[inner.diagonal() > DEPENDENT]
        elif len(entering):
            _, pivots, rank, _ = dpstrf(inner, tol=DEPENDENT, lower=1)
            kept = entering[pivots[:rank] - 1]
        else:
            kept = entering
        return np.sort(np.concatenate([support, kept]))

    def _solve(self, chosen: np.ndarray) -> np.ndarray | None:
        """The least squares solution on linearly independent variables."""
        factor, failed = dpotrf(self.gram[np.ix_(chosen, chosen)], lower=1)
        return None if failed else dpotrs(factor, self.right[chosen], lower=1)[0]

    def _spread(self, chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
        out = np.zeros(len(self.right))
        out[chosen] = values
        return out
