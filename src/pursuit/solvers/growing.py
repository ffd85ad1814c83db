"""The refined pursuit: a support that grows in stages and is then improved by swaps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from pursuit.solvers.atom_pool import TIE, AtomPool
from pursuit.solvers.support import Support

WATCHED = 2048  # atoms that a reading takes up, the most correlated ones
SHARE, FEWEST = 0.4, 4  # a stage adds at most this share of the support, and may always add a few
LARGEST_STAGE = 0.05  # of the size wanted
STAGE_FALL = 0.92  # a stage ends when the residual is as short as this share of what it was
READING_FALL = 0.86  # and at this share of what it was at the last reading all atoms are looked at again
CHOICE, MORE = 4, 32  # candidates for each atom that may join in a stage, and some more
SWAPPED, SWAPPED_OF_FEW = 0.05, 16  # atoms swapped in a round: this share of them, or so many (up to a quarter)
LEAST_GAIN = 0.01  # of the residual: a round of swaps that gains less is a poor one
PATIENCE, MOST_POOR = 2048, 8  # swapping ends after PATIENCE / k poor rounds, from two to so many


@dataclass
class Goal:
    """One pass: approximate `target` by at most `size` of the open atoms; and what happened on the way."""

    pool: AtomPool
    target: np.ndarray
    open_atoms: np.ndarray
    size: int
    enough: float
    watch: Callable[[str], AbstractContextManager[None]]
    told: Callable[[int], object] = lambda count: None
    norms: list[float] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)

    def record(self, before: np.ndarray, after: np.ndarray, norm: float) -> None:
        """Note an iteration: the atoms before and after it, and the residual's length."""
        self.norms.append(norm)
        self.changes.append(len(np.setdiff1d(after, before)))
        self.told(len(after))


@dataclass
class _Reading:
    """The open atoms (w,) that correlated most with a residual, their rows (w, d), and that residual's length.

    Growing changes the residual slowly: for a while, those that correlate most are nearly all among these.
    """

    atoms: np.ndarray
    rows: np.ndarray
    norm: float

    def best(self, support: Support, count: int) -> np.ndarray:
        """The places of those outside of the support that correlate most with its residual now, ascending."""
        scores = self.rows @ (support.residual / (support.norm or 1.0)).astype(self.rows.dtype)
        scores[np.isin(self.atoms, support.atoms)] = -np.inf
        places = np.argpartition(-scores, count)[:count] if len(scores) > count else np.arange(len(scores))
        return np.sort(places[scores[places] > 0])


class Pursuit:
    """A support for a goal."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self.swapped = max(1, round(SWAPPED * goal.size), min(SWAPPED_OF_FEW, goal.size // 4))
        self.support = Support(goal.target, goal.size + self.swapped)
        self.tie = TIE * goal.pool.largest_norm * float(np.linalg.norm(goal.target))
        self.reading = self._read(self.support)

    def _read(self, support: Support) -> _Reading:
        pool = self.goal.pool
        with self.goal.watch("correlations"):
            atoms = pool.strongest(support.residual, self.goal.open_atoms, WATCHED)
        with self.goal.watch("candidates"):
            return _Reading(atoms, pool.gather(atoms, pool.kind), support.norm)

    def _stage(self, support: Support, most: int, fall: float) -> int:
        """Candidates join a support until the residual is as short as a share `fall`; returns how many."""
        count = CHOICE * most + MORE
        with self.goal.watch("candidates"):
            places = self.reading.best(support, count)
        if len(places) < 2 * most and self.reading.norm != support.norm:
            self.reading = self._read(support)
            places = self.reading.best(support, count)
        with self.goal.watch("fitting"):
            enough = max(self.goal.enough, fall * support.norm)
            atoms, rows = self.reading.atoms[places], self.reading.rows[places]
            return support.join(self.goal.pool, atoms, rows, most, enough, self.tie)

    def grow(self) -> None:
        """Stages until the support is full or nothing is left to gain."""
        goal, support, joined = self.goal, self.support, FEWEST
        while support.size < goal.size and support.norm > goal.enough:
            if support.norm < READING_FALL * self.reading.norm:
                self.reading = self._read(support)
            before, norm = support.atoms.copy(), support.norm
            most = min(int(SHARE * support.size), int(LARGEST_STAGE * goal.size), 2 * joined)
            joined = self._stage(support, min(max(FEWEST, most), goal.size - support.size), STAGE_FALL)
            if support.norm < norm * (1 - TIE):
                goal.record(before, support.atoms, support.norm)
            elif self.reading.norm == support.norm:
                break
            else:
                self.reading = self._read(support)

    def swap(self, rounds: int) -> None:
        """Rounds in which some atoms join and as many of the least use leave, or the other way round."""
        goal, count, poor = self.goal, self.swapped, 0
        patience = min(MOST_POOR, max(2, PATIENCE // max(1, goal.size)))
        for _ in range(rounds):
            if self.support.size < goal.size or self.support.norm <= goal.enough or not count or poor == patience:
                break
            trial = self.support.copy()
            if poor % 2:
                with goal.watch("fitting"):
                    trial.prune(goal.size - count)
            if self.reading.norm != trial.norm:
                self.reading = self._read(trial)
            self._stage(trial, count, 0.0)
            with goal.watch("fitting"):
                trial.prune(goal.size)
            gained = 1 - trial.norm / self.support.norm
            if gained > 0:
                goal.record(self.support.atoms, trial.atoms, trial.norm)
                self.support = trial
            if gained < LEAST_GAIN:
                count, poor = count // 2 if poor % 2 else count, poor + 1
