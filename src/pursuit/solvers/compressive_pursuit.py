"""Sparse non-negative approximation of a target, all atoms chosen together (GTP, arXiv 2410.16710)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pursuit.solvers.atom_pool import TIE, AtomPool
from pursuit.solvers.passes import Map, Method, Passes, Refine, Watch, make_passes
from pursuit.solvers.rows import (
    DEFAULT_MEMORY_BYTES,
    Advance,
    Matrix,
    RowMatrix,
    Vector,
    as_array,
    as_rows,
    rank_descending,
)
from pursuit.solvers.tally import Tally

NOISE = 1e-13  # relative length of a residual that is rounding


@dataclass(frozen=True)
class CompressiveResult:
    """What a compressive pursuit chose.

    Attributes:
        indices: (k,) int64, atoms, pass after pass; within a pass those of larger weight first.
        weights: (k,) float64, each from the solution of its own pass; 0 for atoms that were filled in.
        residuals: (iterations,) float64, ‖b − A w‖ / ‖b‖ after every iteration of every pass.
        changes: (iterations,) int64, how many atoms entered the support in it.
        passes: (passes,) int64, where each pass starts in `indices`.
        pass_iterations: (passes,) int64, where each pass starts in `residuals`.
        rank: atoms of the first pass; they are linearly independent, and their weights follow the target.
        residual: ‖b − A w‖ / ‖b‖ of the first pass, 1 when nothing correlates with the target.
        filled: how many of the last `indices` no pass chose.
        seconds: by part: "reading" (the first look at all atoms), "correlations" (further ones), "candidates" (their
            rows), "fitting", and "further passes" over parts of the atoms.
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
    atoms: Matrix,
    target: Vector,
    budget: int,
    *,
    refine: Refine = "swaps",
    iterations: int = 10,
    tol: float = 1e-6,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    map: Map = map,
    advance: Advance | None = None,
) -> CompressiveResult:
    """Choose k atoms a_i whose non-negative sum is nearest to a target b: min ‖b − Σ w_i a_i‖², w ≥ 0, ‖w‖₀ ≤ k.

    refine="none" is the published loop: compressive sampling matching pursuit (CoSaMP, Needell and Tropp 2009) with
    non-negative least squares. An iteration joins the 2k atoms of the largest positive ⟨a_i, r⟩ to the support, solves
    on all of them, keeps the k largest weights, solves again, and sets r to what is left. The best iterate counts; it
    ends without progress, with the same support, or when ‖r‖ ≤ `tol` ‖b‖.

    refine="swaps" [ours] keeps the frame (many candidates by correlation from the whole pool, one solution on all of
    the support, back to k) and changes how the support comes out of the candidates, because the largest weights are a
    poor guide among atoms that resemble each other:
    - A reading of all atoms takes up the 2,048 that correlate most with r.
    - Stages: of these the best candidates for r as it is now, four for each place, join one by one, each the one that
      shortens ‖r‖ most (orthogonal least squares, Chen, Billings and Luo 1989); then all weights are solved for, and
      negative ones leave. A stage adds at most 40 % of the support and a twentieth of k, and ends when ‖r‖ has fallen
      by 8 %. When ‖r‖ has fallen by 14 % since the last reading, all atoms are read again.
    - At k, up to `iterations` rounds of swaps: s = k/20 atoms join (16 for small k, a quarter at most), the s whose
      removal costs least leave, and the better support stays. After a poor round, one that gains less than 1 %, they
      leave first and others join; after two, s is halved; after 2048/k (2 to 8) it ends.

    Non-negative least squares has at most rank(A) positive weights. A budget beyond what one pass can hold is used by
    further passes over the atoms that are left, all against b [ours: nothing correlates with the residual any more].
    Where more are missing than there are dimensions, the atoms left are dealt out, in short runs of neighbours, to
    parts that are each asked for d/2 atoms, without swaps: so the work grows with n and not with n times the number of
    passes. The budget is filled, at weight 0, by correlation with b when passes choose nothing or less than 1/200 of
    what is missing [ours].

    [ours]: of equal atoms the first stands for all; the others, and zero atoms, come last. The result is the same on
    every call, and does not depend on `memory_bytes`, on `map`, or on how and where the atoms are served.

    Cost, refine="swaps": O(n d) for a reading, of which there are about 6 · ln(‖b‖ / ‖r‖); a stage on m atoms is
    products of matrices, O(m d p + m² p) with p ≤ 0.4 k + 32 candidates. refine="none": O(n d + m² d + m³) for an
    iteration with m ≤ 3k candidates.

    Args:
        atoms: (n, d) rows, numpy or torch or a RowMatrix; may be larger than memory, and is then read in blocks.
        target: (d,) b.
        budget: k; more than n means all n.
        iterations: of the published loop, or rounds of swaps.
        tol: relative residual at which a pass ends.
        memory_bytes: bound on the rows held by a pass over a part of the atoms. On top come O(n) numbers, 2,048 rows,
            and O(k d + k²) for the support (m d + m² for m ≤ 3k candidates without refinement).
        map: makes the further passes over parts, like the builtin `map`; function and parts can be sent.
        advance: told how many more atoms are chosen; k in all.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, a negative budget, tolerance or number of iterations.
    """
    rows, goal = as_rows(atoms), as_array(target)
    check(rows, goal, budget, refine, iterations, tol)
    watch, tally = Watch(), Tally(advance)
    with watch("reading"):
        pool = AtomPool(rows, goal, memory_bytes)
    method = Method(refine, int(iterations), max(tol, NOISE) * float(np.linalg.norm(goal)), memory_bytes)
    budget = min(int(budget), pool.rows)
    passes, missing = make_passes(pool, budget, method, watch, tally, map)
    tally.close(missing)
    return _result(pool, passes, missing, watch)


def check(rows: RowMatrix, target: np.ndarray, budget: int, refine: str, iterations: int, tol: float) -> None:
    """Raise ValueError for arguments of `compressive_pursuit` that cannot be used."""
    if len(rows.shape) != 2 or target.shape != (rows.shape[1],):
        raise ValueError(f"atoms must be (n, d) and target (d,); they are {tuple(rows.shape)} and {target.shape}")
    if not np.isfinite(target).all():
        raise ValueError("target holds NaN or infinity")
    if refine not in ("swaps", "none"):
        raise ValueError(f'refine must be "swaps" or "none", not {refine!r}')
    for name, value in (("budget", budget), ("iterations", iterations)):
        if not value >= 0 or int(value) != value:
            raise ValueError(f"{name} must be a whole number of at least 0, not {value}")
    if not (tol >= 0 and np.isfinite(tol)):
        raise ValueError(f"tol must be a number of at least 0, not {tol}")


def _result(pool: AtomPool, passes: Passes, missing: int, watch: Watch) -> CompressiveResult:
    fits = passes.fits
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
    return CompressiveResult(
        indices=np.concatenate([np.zeros(0, np.int64), *taken]),
        weights=np.concatenate([*weights, np.zeros(missing)]),
        residuals=np.array([norm for norms in passes.norms for norm in norms]) / (target_norm or 1.0),
        changes=np.array([count for counts in passes.changes for count in counts], dtype=np.int64),
        passes=_starts([len(fit.atoms) for fit in fits]),
        pass_iterations=_starts([len(norms) for norms in passes.norms]),
        rank=len(fits[0].atoms) if fits else 0,
        residual=fits[0].norm / target_norm if fits else 1.0,
        filled=missing,
        seconds=dict(watch.seconds),
    )


def _starts(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths[:-1]], dtype=np.int64)[: len(lengths)]
