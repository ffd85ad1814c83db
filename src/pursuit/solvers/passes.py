"""Passes of a compressive pursuit: one over all atoms, then further ones until the budget is used."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from pursuit.solvers.atom_pool import AtomPool
from pursuit.solvers.candidates import Candidates, Fit
from pursuit.solvers.growing import Goal, Pursuit
from pursuit.solvers.rows import RowMatrix, RowView, release
from pursuit.solvers.tally import Tally

Refine = Literal["swaps", "none"]
Map = Callable[[Callable[..., Any], Any], Any]

WORTHWHILE = 200  # further passes that choose less than this part of what is missing are the last
HELD = 2  # a part is asked for 1/2 of as many atoms as there are dimensions: so many fit together well
RUNS, LONGEST_RUN = 32, 256  # a part is so many runs of neighbouring atoms or more: a disk reads these together


class Watch:
    """Seconds by part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - started


@dataclass(frozen=True)
class Method:
    """How a pass is made: refinement and iterations, the residual's length at which it ends, memory."""

    refine: Refine
    iterations: int
    enough: float
    memory_bytes: int


@dataclass
class Passes:
    """What was chosen so far: the fit of every pass, and the length of the residual after each of its iterations."""

    fits: list[Fit] = field(default_factory=list)
    norms: list[list[float]] = field(default_factory=list)
    changes: list[list[int]] = field(default_factory=list)

    def add(self, found: _Found) -> int:
        """Take in a pass that chose something; returns how many atoms it chose."""
        fit, norms, changes = found
        if len(fit.atoms):
            self.fits.append(fit)
            self.norms.append(norms)
            self.changes.append(changes)
        return len(fit.atoms)


_Found = tuple[Fit, list[float], list[int]]


def make_passes(
    pool: AtomPool, budget: int, method: Method, watch: Watch, tally: Tally, map: Map
) -> tuple[Passes, int]:
    """Passes until the budget is used or they are no longer worthwhile; and how many atoms are then missing."""
    passes, open_atoms, missing = Passes(), pool.distinct.copy(), budget
    while missing and pool.target.any() and open_atoms.any():
        if passes.fits and missing > pool.width:
            chosen = _over_parts(pool, open_atoms, missing, method, watch, tally, map, passes)
        else:
            goal = Goal(pool, pool.target, open_atoms, min(missing, pool.width), method.enough, watch, tally)
            chosen = passes.add(_pursue(goal, method))
            tally.close(chosen)
        for fit in passes.fits:
            open_atoms[fit.atoms] = False
        missing -= chosen
        if WORTHWHILE * chosen <= missing:
            break
    return passes, missing


def _over_parts(
    pool: AtomPool, open_atoms: np.ndarray, missing: int, method: Method, watch: Watch, tally: Tally, map: Map,
    passes: Passes,
) -> int:  # fmt: skip
    """A pass over each of several parts of the open atoms, all against the target; returns how many were chosen.

    The atoms are dealt out to the parts in short runs, so that each part resembles the whole; together they read the
    atoms once, however large the budget.
    """
    rest = np.flatnonzero(open_atoms)
    count = min(missing, len(rest), -(-HELD * missing // pool.width))
    sizes = np.diff(np.arange(count + 1) * missing // count)
    run = min(LONGEST_RUN, max(1, len(rest) // (RUNS * count)))
    owner = np.arange(len(rest)) // run % count
    parts = [(rest[owner == number], int(size)) for number, size in enumerate(sizes)]
    chosen = 0
    with watch("further passes"):
        for found in map(partial(_over_part, pool.atoms, pool.target, method), parts):
            taken = passes.add(found)
            tally.close(taken)
            chosen += taken
    return chosen


def _over_part(atoms: RowMatrix, target: np.ndarray, method: Method, part: tuple[np.ndarray, int]) -> _Found:
    """A pass over some of the atoms, without swaps."""
    indices, size = part
    rows: RowMatrix = RowView(atoms, indices)
    if len(indices) * atoms.shape[1] * 8 <= method.memory_bytes // 2:
        rows = rows[:]
        release(atoms)
    pool = AtomPool(rows, target, method.memory_bytes)
    goal = Goal(pool, target, pool.distinct, min(size, len(indices), pool.width), method.enough, Watch())
    fit, norms, changes = _pursue(goal, replace(method, iterations=0) if method.refine == "swaps" else method)
    return Fit(indices[fit.atoms], fit.weights, fit.residual, fit.norm), norms, changes


def _pursue(goal: Goal, method: Method) -> _Found:
    fit = _published(goal, method.iterations) if method.refine == "none" else _refined(goal, method.iterations)
    return fit, goal.norms, goal.changes


def _refined(goal: Goal, rounds: int) -> Fit:
    """The support grown in stages, then improved by swaps."""
    pursuit = Pursuit(goal)
    pursuit.grow()
    pursuit.swap(rounds)
    pursuit.grow()  # a swap may leave fewer
    with goal.watch("fitting"):
        return pursuit.support.fit()


def _published(goal: Goal, iterations: int) -> Fit:
    """The loop of GTP as published."""
    best = last = Fit.of_nothing(goal.target)
    for _ in range(iterations):
        with goal.watch("correlations"):
            joined, _ = goal.pool.most_correlated(last.residual, goal.open_atoms, 2 * goal.size)
        with goal.watch("candidates"):
            candidates = Candidates(goal.pool, np.concatenate([joined, last.atoms]), goal.target)
        with goal.watch("fitting"):
            weights = candidates.solve(np.arange(len(candidates.atoms)), np.isin(candidates.atoms, last.atoms))
            order = np.argsort(-weights, kind="stable")[: min(goal.size, np.count_nonzero(weights))]
            fit = candidates.fit(order)
        goal.record(last.atoms, fit.atoms, fit.norm)
        progress, same = fit.norm < best.norm, np.array_equal(fit.atoms, last.atoms)
        best, last = fit if progress else best, fit
        if not progress or same or fit.norm <= goal.enough:
            break
    return best
