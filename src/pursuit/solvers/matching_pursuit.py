"""Non-negative orthogonal matching pursuit with a ridge (TAGCOS, arXiv 2407.15235, section 3), fast and exact.

The textbook algorithm solves the ridge problem anew and multiplies all atoms by the residual in every step. Here the
solution follows a Cholesky factor that grows and shrinks by a row, and the pursuit runs ahead on a shortlist of atoms
for many steps. One product of all atoms with all residuals of these steps then shows whether another atom would have
been chosen; at the first step where this is so, the pursuit goes back to it. float32 is enough for that, because its
error is bounded and what it leaves open is compared in float64. The atoms chosen are those of the textbook algorithm in
float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pursuit.solvers.pursuit_state import EPSILON, NOISE, Problem, PursuitState
from pursuit.solvers.rows import (
    DEFAULT_MEMORY_BYTES,
    Advance,
    Matrix,
    RowMatrix,
    Vector,
    as_array,
    as_rows,
    gathered_dots,
    rank_descending,
)
from pursuit.solvers.screening import TIE, Screen, dots
from pursuit.solvers.tally import Tally

FIRST_STEPS, MOST_STEPS = 16, 128  # to run ahead at once
MOST_OPEN = 128  # atoms for each choice that float32 leaves open; with more, float64 is faster


@dataclass(frozen=True)
class PursuitResult:
    """What a pursuit chose.

    Attributes:
        indices: (k,) int64, atoms in the order of choice, pass after pass.
        weights: (k,) float64, each from the solution of its own pass; 0 for atoms that were filled in.
        residuals: (steps,) float64, ‖c − F_Iᵀ w‖ / ‖c‖ after every step of every pass that chose something.
        passes: (passes,) int64, where each pass starts in `indices`.
        pass_steps: (passes,) int64, where each pass starts in `residuals`.
        filled: how many of the last `indices` no pass chose.
        drops: how many times an atom was dropped because its weight was negative.
    """

    indices: np.ndarray
    weights: np.ndarray
    residuals: np.ndarray
    passes: np.ndarray
    pass_steps: np.ndarray
    filled: int
    drops: int


def matching_pursuit(
    atoms: Matrix,
    target: Vector,
    budget: int,
    *,
    ridge: float = 1.0,
    tol: float = 1e-4,
    positive: bool = True,
    restart: bool = True,
    ridge_first: bool = False,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    advance: Advance | None = None,
) -> PursuitResult:
    """Choose few atoms f_i that approximate a target c together: min ‖c − Σ w_i f_i‖² + ridge ‖w‖², w ≥ 0.

    One pass (TAGCOS, arXiv 2407.15235, section 3 and its released code), of at most as many steps as the budget has
    left: take the atom with the largest ⟨f_i, r⟩, solve for all weights, drop the most negative weight and solve again
    until none is negative, r ← c − Σ w_i f_i. The pass ends when ‖r‖/‖c‖ < `tol` or when the best atom is already in
    it. The next pass starts from c on the atoms that are left, until the budget is filled.

    Left open by the paper, and decided here [ours]:
    - Ties: correlations within 1e-12 · max‖f‖ · ‖r‖ of the largest are equal, and the lowest index wins. Weights within
      the same relative distance of zero are zero, not negative.
    - A step that changes nothing (the new atom is the one dropped) ends the pass: every later step would repeat it.
    - An atom that depends linearly on those of the pass (Schur complement ≤ 1e-12 · ‖f‖²; only with a vanishing ridge,
      or a zero atom at the start of a pass) ends the pass.
    - A pass that chooses nothing ends the restarts. The rest of the budget is filled with the atoms of the largest
      correlation with c, at weight 0.
    - `tol` below 1e-12 counts as 1e-12.

    The result does not depend on `memory_bytes` or on how the atoms are served, and is the same on every call.

    Cost of a pass of m atoms: O(n m d) for products and O(m² (m + d)) for weights at most, the atoms being read about
    once for each ten choices; the textbook reads them once a choice and solves anew, O(n m d + m³ (m + d)).

    Args:
        atoms: (n, d) rows, numpy or torch or a RowMatrix; may be larger than memory, and is then read in blocks.
        target: (d,) c.
        budget: how many atoms to choose; more than n means all n.
        ridge: λ ≥ 0, an absolute number.
        tol: relative residual at which a pass ends.
        positive: non-negative weights and signed correlations; False is plain orthogonal matching pursuit (largest
            |⟨f_i, r⟩|, least squares with the ridge).
        restart: start again until the budget is filled; False makes one pass and may return fewer than `budget`.
        ridge_first: solve for the first atom of a pass with the ridge too; the released code solves it without.
        memory_bytes: bound on the memory of a working copy of the atoms (left out where it does not fit), of the
            shortlist and of the products. On top come O(n) numbers, and O(m·d + m²) for a pass of m atoms.
        advance: told how many more atoms are chosen; k in all where it starts again until the budget is filled.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, a negative budget, ridge or tolerance.
    """
    rows = as_rows(atoms)
    goal = _checked(rows, as_array(target), budget, ridge, tol)
    screen = Screen(rows, goal, memory_bytes)
    problem = Problem(
        rows, goal, screen.base, screen.largest_norm, min(int(budget), screen.rows), ridge,
        ridge if ridge_first else 0.0, max(tol, NOISE), positive, restart,
    )  # fmt: skip
    tally = Tally(advance)
    result = _result(_run(PursuitState(problem), screen, tally), screen)
    tally(len(result.indices))
    return result


def _checked(atoms: RowMatrix, target: np.ndarray, budget: int, ridge: float, tol: float) -> np.ndarray:
    if len(atoms.shape) != 2 or target.shape != (atoms.shape[1],):
        raise ValueError(f"atoms must be (n, d) and target (d,); they are {tuple(atoms.shape)} and {target.shape}")
    if not np.isfinite(target).all():
        raise ValueError("target holds NaN or infinity")
    if not budget >= 0 or int(budget) != budget:
        raise ValueError(f"budget must be a whole number of at least 0, not {budget}")
    for name, value in (("ridge", ridge), ("tol", tol)):
        if not (value >= 0 and np.isfinite(value)):
            raise ValueError(f"{name} must be a number of at least 0, not {value}")
    return target


@dataclass
class _Choice:
    """A choice from the shortlist, to be checked against all other atoms."""

    before: PursuitState
    atom: int
    floor: float  # an atom outside of the shortlist with a correlation below this cannot have been better


@dataclass
class _Shortlist:
    """The atoms (m,) that the pursuit runs ahead on, and their rows (m, d)."""

    atoms: np.ndarray
    rows: np.ndarray


def _run(state: PursuitState, screen: Screen, tally: Tally) -> PursuitState:
    """Choose until the pursuit is finished: ahead on a shortlist, back to the first choice that does not stand."""
    nearness = _scores(state.problem, screen.base)
    steps = FIRST_STEPS
    while state.ready():
        tally(len(state.indices) + len(state.support.indices))
        if not state.support.indices:
            state.apply(_best_for_target(state, screen))
            continue
        if screen.there is not None:  # a product with all atoms takes less than a step's other work
            products = _scores(state.problem, screen.products(state.residual[None]))[0]
            state.apply(_best_of_all(state, screen, products))
            continue
        shortlist = _shortlist(state, screen, nearness)
        all_listed = len(shortlist.atoms) == np.count_nonzero(state.available)
        choices = _run_ahead(state, screen, shortlist, min(steps, screen.most_residuals))
        if all_listed:
            continue
        products = _scores(state.problem, screen.products(np.stack([choice.before.residual for choice in choices])))
        failed = _first_failure(screen, shortlist, choices, products)
        if failed is None:
            nearness = _nearness(choices[-1:], products[-1:])
            steps = min(2 * max(steps, 4), MOST_STEPS)
        else:
            nearness = _nearness(choices[failed:], products[failed:])
            steps = 3 * failed // 2 + 2
            state = choices[failed].before
            state.apply(_best_of_all(state, screen, products[failed]))
    return state


def _scores(problem: Problem, correlations: np.ndarray) -> np.ndarray:
    return correlations if problem.positive else np.abs(correlations)


def _best_for_target(state: PursuitState, screen: Screen) -> int:
    """The best atom at the start of a pass: the residual is the target, and all correlations with it are known."""
    open_atoms = np.flatnonzero(state.available)
    scores = _scores(state.problem, screen.base[open_atoms])
    return screen.best(scores, 0.0, open_atoms, state.residual, state.problem.positive)


def _best_of_all(state: PursuitState, screen: Screen, scores: np.ndarray) -> int:
    open_scores = np.where(state.available, scores, -np.inf)
    error = screen.error(scores, state.norm)
    return screen.best(open_scores, error, np.arange(screen.rows), state.residual, state.problem.positive)


def _shortlist(state: PursuitState, screen: Screen, nearness: np.ndarray) -> _Shortlist:
    """The available atoms that came nearest to being chosen, and those most like the target for the passes to come."""
    size = screen.shortlist_size
    for_target = size // 4 if state.passes else 0
    open_atoms = np.flatnonzero(state.available)
    if len(open_atoms) > size:
        best = [open_atoms[np.argpartition(nearness[open_atoms], for_target - size)[for_target - size :]]]
        if for_target:
            base = _scores(state.problem, screen.base[open_atoms])
            best.append(open_atoms[np.argpartition(base, -for_target)[-for_target:]])
        open_atoms = np.unique(np.concatenate(best))
    return _Shortlist(open_atoms, screen.gather(open_atoms))


def _run_ahead(state: PursuitState, screen: Screen, shortlist: _Shortlist, steps: int) -> list[_Choice]:
    """Take up to `steps` choices from the shortlist; those that need a check."""
    choices: list[_Choice] = []
    while len(choices) < steps and state.ready():
        if not state.support.indices:
            atom = _best_for_target(state, screen)
        else:
            choices.append(_choose(state, screen, shortlist))
            atom = choices[-1].atom
        state.apply(atom)
    return choices


def _choose(state: PursuitState, screen: Screen, shortlist: _Shortlist) -> _Choice:
    """The best of the shortlist and of the atoms of the running pass."""
    problem, support = state.problem, state.support.indices
    products = dots(shortlist.rows, state.residual.astype(shortlist.rows.dtype))
    listed = np.where(state.available[shortlist.atoms], _scores(problem, products), -np.inf)
    own = np.zeros(len(support)) if state.without_ridge else problem.ridge * state.pass_weights  # F_I r = λ w
    scores = np.concatenate([listed, _scores(problem, own)])
    error = screen.error(products, state.norm) + 8 * EPSILON * problem.largest_norm * problem.target_norm
    candidates = np.concatenate([shortlist.atoms, support])
    atom = screen.best(scores, error, candidates, state.residual, problem.positive)
    floor = float(scores.max()) - 2 * error - TIE * problem.largest_norm * state.norm
    return _Choice(state.snapshot(), atom, floor)


def _first_failure(screen: Screen, shortlist: _Shortlist, choices: list[_Choice], products: np.ndarray) -> int | None:
    """The first choice that an atom outside of the shortlist may have deserved, if any."""
    outside = np.ones(screen.rows, bool)
    outside[shortlist.atoms] = False
    left_open = 0
    failed = None
    for number, choice in enumerate(choices):
        state, scores = choice.before, products[number]
        error = screen.error(products, state.norm)
        rivals = np.flatnonzero(scores >= choice.floor - error)
        rivals = rivals[outside[rivals] & state.available[rivals]]
        rivals = rivals[~np.isin(rivals, state.support.indices)] if len(rivals) else rivals
        if not len(rivals):
            continue
        exact = gathered_dots(screen.atoms, rivals, state.residual, screen.memory_bytes)
        left_open += int(np.count_nonzero(scores[rivals] < choice.floor + 4 * error))
        if (_scores(state.problem, exact) >= choice.floor).any():
            failed = number
            break
    if left_open > MOST_OPEN * (len(choices) if failed is None else failed + 1):
        screen.sharpen()
    return failed


def _nearness(choices: list[_Choice], products: np.ndarray) -> np.ndarray:
    """(n,) how near every atom came to being chosen in any of some steps.

    The steps after one that failed count too: what they ran into is much like what is to come.
    """
    nearest = np.full(products.shape[1], -np.inf, products.dtype)
    for choice, scores in zip(choices, products, strict=True):
        np.maximum(nearest, (scores - choice.floor) / choice.before.norm, out=nearest)
    return nearest


def _result(state: PursuitState, screen: Screen) -> PursuitResult:
    """Everything chosen, filled up to the budget by correlation with the target."""
    problem = state.problem
    missing = problem.budget - len(state.indices) if problem.restart else 0
    rest = np.flatnonzero(state.available)
    if missing:
        scores = _scores(problem, screen.base[rest])
        rest = rest[rank_descending(scores, TIE * problem.largest_norm * problem.target_norm)]
    return PursuitResult(
        indices=np.array(state.indices + rest[:missing].tolist(), dtype=np.int64),
        weights=np.array(state.weights + [0.0] * missing, dtype=np.float64),
        residuals=np.array(state.residuals, dtype=np.float64),
        passes=np.array(state.passes, dtype=np.int64),
        pass_steps=np.array(state.pass_steps, dtype=np.int64),
        filled=missing,
        drops=state.drops,
    )
