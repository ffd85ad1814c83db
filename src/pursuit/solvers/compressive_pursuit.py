"""Sparse non-negative approximation of a target, all atoms chosen together (GTP, arXiv 2410.16710)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from pursuit.solvers.atom_pool import TIE, AtomPool
from pursuit.solvers.rows import DEFAULT_MEMORY_BYTES, RowMatrix, rank_descending
from pursuit.solvers.support import Candidates, Fit

LEAST_GAIN = 1e-3  # of the residual; a round of swaps that gains less is followed by one of half the size
FEWEST_CANDIDATES = 64
WORTHWHILE = 200  # a pass that chooses less than this part of what is missing is the last


@dataclass(frozen=True)
class CompressiveResult:
    """What a compressive pursuit chose.

    Attributes:
        indices: (k,) int64, atoms, pass after pass; within a pass those of larger weight first.
        weights: (k,) float64, each from the solution of its own pass; 0 for atoms that were filled in.
        residuals: (iterations,) float64, ‖goal − A w‖ / ‖b‖ after every iteration of every pass.
        changes: (iterations,) int64, how many atoms entered the support in it.
        passes: (passes,) int64, where each pass starts in `indices`.
        pass_iterations: (passes,) int64, where each pass starts in `residuals`.
        rank: atoms of the first pass; they are linearly independent, and their weights follow the target.
        residual: ‖b − A w‖ / ‖b‖ of the first pass, 1 when nothing correlates with the target.
        filled: how many of the last `indices` no pass chose.
        seconds: by part: "reading", "correlations", "candidates" (rows and inner products), "fitting".
    """

    indices: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray
    changes: np.ndarray
    passes: np.ndarray
    pass_iterations: np.ndarray
    rank: int
    residual: float
    filled: int
    seconds: dict[str, float]


def compressive_pursuit(
    atoms: RowMatrix,
    target: np.ndarray,
    budget: int,
    *,
    refine: Literal["swaps", "none"] = "swaps",
    iterations: int = 10,
    tol: float = 1e-6,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
) -> CompressiveResult:
    """Choose k atoms a_i whose non-negative sum is nearest to a target b: min ‖b − Σ w_i a_i‖², w ≥ 0, ‖w‖₀ ≤ k.

    refine="none" is the published loop: compressive sampling matching pursuit (CoSaMP, Needell and Tropp 2009) with
    non-negative least squares. An iteration joins the 2k atoms of the largest positive ⟨a_i, r⟩ to the support, solves
    on all of them, keeps the k largest weights, solves again, and sets r to what is left. The best iterate counts; it
    ends without progress, with the same support, or when ‖r‖ ≤ `tol` ‖b‖.

    refine="swaps" [ours] keeps the frame (candidates by correlation from the whole pool, one solution on all of them,
    back to k) and changes how the support comes out of the candidates, because the largest weights are a poor guide
    among atoms that resemble each other:
    - start: candidates join one by one, the most correlated first, with a solution after each. When the next one
      correlates less than the weakest candidate did at first, an atom outside could be better: new candidates are read.
    - then up to `iterations` rounds of swaps: the s atoms whose removal costs least leave, the support grows back to k
      from new candidates, and the better support stays. s begins at k/4 and is halved when a round gains less than
      0.1 %.

    Non-negative least squares has at most rank(A) positive weights. When the support stays below the budget, another
    pass goes over the atoms that are left, against the residual; when nothing correlates with that, or after it,
    against b again [ours]. The budget is filled, at weight 0, by correlation with b when passes choose nothing or less
    than 1/200 of what is missing [ours].

    [ours]: of equal atoms the first stands for all; the others, and zero atoms, come last. Correlations within
    1e-12 · max‖a‖ · ‖r‖ are equal, and the lowest index wins. The result does not depend on `memory_bytes` or on how
    the atoms are served.

    An iteration reads the atoms once, O(n d). With m ≤ 3k candidates it costs O(m² d) for inner products and O(m³) for
    solving (refine="none"), or O(k² m) for growing (refine="swaps").

    Args:
        atoms: (n, d) rows; may be larger than memory, and is then read in blocks.
        target: (d,) b.
        budget: k; more than n means all n.
        iterations: of the published loop, or rounds of swaps.
        tol: relative residual at which a pass ends.
        memory_bytes: bound on the memory of a block of atoms. On top come O(n) numbers, O(m d + m²) for m candidates.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, a negative budget, tolerance or number of iterations.
    """
    target = _checked(atoms, target, budget, refine, iterations, tol)
    watch = _Watch()
    with watch("reading"):
        pool = AtomPool(atoms, target, memory_bytes)
    pursue = partial(_published if refine == "none" else _refined, iterations=iterations, watch=watch)
    return _passes(pool, min(int(budget), pool.rows), tol * float(np.linalg.norm(target)), pursue, watch)


class _Watch:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started


@dataclass
class _Goal:
    """One pass: approximate `target` by at most `size` of the open atoms; and what happened on the way."""

    pool: AtomPool
    target: np.ndarray
    open_atoms: np.ndarray
    size: int
    enough: float
    norms: list[float] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)

    def nothing(self) -> Fit:
        """The empty support."""
        return Fit(np.zeros(0, np.int64), np.zeros(0), self.target, float(np.linalg.norm(self.target)))

    def record(self, before: Fit, after: Fit) -> None:
        """Note an iteration."""
        self.norms.append(after.norm)
        self.changes.append(len(np.setdiff1d(after.atoms, before.atoms)))


def _published(goal: _Goal, *, iterations: int, watch: _Watch) -> Fit:
    """The loop of GTP as published."""
    best = last = goal.nothing()
    for _ in range(iterations):
        joined, _ = _most_correlated(goal, last, 2 * goal.size, watch)
        with watch("candidates"):
            candidates = Candidates(goal.pool, np.concatenate([joined, last.atoms]), goal.target)
        with watch("fitting"):
            weights = candidates.solve(np.arange(len(candidates.atoms)), np.isin(candidates.atoms, last.atoms))
            order = np.argsort(-weights, kind="stable")[: min(goal.size, np.count_nonzero(weights))]
            fit = candidates.fit(order)
        goal.record(last, fit)
        progress, same = fit.norm < best.norm, np.array_equal(fit.atoms, last.atoms)
        best, last = fit if progress else best, fit
        if not progress or same or fit.norm <= goal.enough:
            break
    return best


def _refined(goal: _Goal, *, iterations: int, watch: _Watch) -> Fit:
    """The support grown in stages, then improved by swaps."""
    best = _grow(goal, goal.nothing(), watch)
    if len(best.atoms) < goal.size:  # nothing positive is left to gain: the optimum over the whole pool
        return best
    swapped = max(1, goal.size // 4)
    for _ in range(iterations):
        if best.norm <= goal.enough:
            break
        with watch("candidates"):
            own = Candidates(goal.pool, best.atoms, goal.target)
        with watch("fitting"):
            kept = own.fit(own.without_cheapest(np.arange(len(best.atoms)), swapped))
        silent = _Goal(goal.pool, goal.target, goal.open_atoms, goal.size, goal.enough)
        fit = _grow(silent, kept, watch)
        gained = 1 - fit.norm / best.norm
        better = fit if gained > 0 else best
        goal.record(best, better)
        best = better
        if gained < LEAST_GAIN:
            swapped //= 2
            if not swapped:
                break
    return best


def _grow(goal: _Goal, fit: Fit, watch: _Watch) -> Fit:
    """Stages: candidates from the whole pool, and growth among them until an atom outside could be better."""
    count = max(FEWEST_CANDIDATES, goal.size // 2)
    while len(fit.atoms) < goal.size and fit.norm > goal.enough:
        joined, floor = _most_correlated(goal, fit, count, watch)
        if not len(joined):
            break
        with watch("candidates"):
            candidates = Candidates(goal.pool, np.concatenate([joined, fit.atoms]), goal.target)
        with watch("fitting"):
            grown = candidates.fit(candidates.grow(candidates.places(fit.atoms), goal.size, floor))
        if grown.norm >= fit.norm:
            break
        goal.record(fit, grown)
        fit = grown
    return fit


def _most_correlated(goal: _Goal, fit: Fit, count: int, watch: _Watch) -> tuple[np.ndarray, float]:
    """The open atoms that correlate most with a residual, and the correlation that all others stay below."""
    with watch("correlations"):
        best, scores = goal.pool.most_correlated(fit.residual, goal.open_atoms, count)
    return best, float(scores[-1]) if len(best) == count else 0.0


def _passes(
    pool: AtomPool, budget: int, enough: float, pursue: Callable[[_Goal], Fit], watch: _Watch
) -> CompressiveResult:
    """Passes until the budget is used or nothing is left to gain, then the fill."""
    open_atoms, target_norm = pool.distinct.copy(), float(np.linalg.norm(pool.target))
    fits: list[Fit] = []
    goals: list[_Goal] = []
    missing, target = budget, pool.target
    while missing and target_norm and open_atoms.any():
        goal = _Goal(pool, target, open_atoms, min(missing, pool.width), enough)
        fit = pursue(goal)
        if len(fit.atoms):
            fits.append(fit)
            goals.append(goal)
            open_atoms[fit.atoms] = False
            missing -= len(fit.atoms)
        elif target is pool.target:
            break
        if target is pool.target and WORTHWHILE * len(fit.atoms) < missing:
            break
        again = target is not pool.target or fit.norm <= enough
        target = pool.target if again else fit.residual
    return _result(pool, fits, goals, missing, watch)


def _result(pool: AtomPool, fits: list[Fit], goals: list[_Goal], missing: int, watch: _Watch) -> CompressiveResult:
    orders = [np.lexsort((fit.atoms, -fit.weights)) for fit in fits]
    taken = [fit.atoms[order] for fit, order in zip(fits, orders, strict=True)]
    target_norm = float(np.linalg.norm(pool.target))
    left = np.ones(pool.rows, bool)
    left[np.concatenate([np.zeros(0, np.int64), *taken])] = False
    rest = np.flatnonzero(left)
    if missing:
        rest = rest[rank_descending(pool.base[rest], TIE * pool.largest_norm * target_norm)]
        rest = rest[np.argsort(~pool.distinct[rest], kind="stable")][:missing]
        taken.append(rest)
    weights = [fit.weights[order] for fit, order in zip(fits, orders, strict=True)]
    norms = [norm for goal in goals for norm in goal.norms]
    return CompressiveResult(
        indices=np.concatenate([np.zeros(0, np.int64), *taken]),
        weights=np.concatenate([*weights, np.zeros(missing)]),
        residuals=np.array(norms) / (target_norm or 1.0),
        changes=np.array([count for goal in goals for count in goal.changes], dtype=np.int64),
        passes=_starts([len(fit.atoms) for fit in fits]),
        pass_iterations=_starts([len(goal.norms) for goal in goals]),
        rank=len(fits[0].atoms) if fits else 0,
        residual=fits[0].norm / target_norm if fits else 1.0,
        filled=missing,
        seconds=dict(watch.seconds),
    )


def _starts(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths[:-1]], dtype=np.int64)[: len(lengths)]


def _checked(
    atoms: RowMatrix, target: np.ndarray, budget: int, refine: str, iterations: int, tol: float
) -> np.ndarray:
    target = np.ascontiguousarray(target, dtype=np.float64)
    if len(atoms.shape) != 2 or target.shape != (atoms.shape[1],):
        raise ValueError(f"atoms must be (n, d) and target (d,); they are {tuple(atoms.shape)} and {target.shape}")
    if not np.isfinite(target).all():
        raise ValueError("target holds NaN or infinity")
    if refine not in ("swaps", "none"):
        raise ValueError(f'refine must be "swaps" or "none", not {refine!r}')
    for name, value in (("budget", budget), ("iterations", iterations)):
        if not value >= 0 or int(value) != value:
            raise ValueError(f"{name} must be a whole number of at least 0, not {value}")
    if not (tol >= 0 and np.isfinite(tol)):
        raise ValueError(f"tol must be a number of at least 0, not {tol}")
    return target
