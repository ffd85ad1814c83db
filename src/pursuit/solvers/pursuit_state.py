"""The state of a matching pursuit between two choices of an atom: what one step does, and when a pass ends."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np

from pursuit.solvers.cholesky import GrowingCholesky
from pursuit.solvers.rows import RowMatrix

NOISE = 1e-12  # relative size below which a difference is taken for rounding
EPSILON = float(np.finfo(np.float64).eps)


@dataclass
class Problem:
    """What stays the same during a pursuit; the arguments of `matching_pursuit`."""

    atoms: RowMatrix
    target: np.ndarray
    base: np.ndarray  # (n,) F c
    largest_norm: float
    budget: int
    ridge: float
    first_ridge: float
    tol: float
    positive: bool
    restart: bool

    def __post_init__(self) -> None:
        self.target_norm = float(np.linalg.norm(self.target))
        size = self.largest_norm**2 + self.ridge
        self.weight_scale = self.target_norm * self.largest_norm / size if size else 0.0


@dataclass
class Support:
    """The atoms I of the running pass: their rows and the factor of F_I F_Iᵀ + λI."""

    ridge: float
    rows: np.ndarray  # (capacity, d) float64
    indices: list[int] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)  # F_I c
    factor: GrowingCholesky = field(default_factory=GrowingCholesky)

    def snapshot(self) -> Support:
        """This support as it is now, whatever follows here; see `GrowingCholesky.snapshot`."""
        twin = copy.copy(self)
        twin.indices, twin.squares, twin.right = self.indices[:], self.squares[:], self.right[:]
        twin.factor = self.factor.snapshot()
        return twin

    def append(self, index: int, row: np.ndarray, correlation: float, ridge: float) -> bool:
        """Add an atom; False, and nothing is added, when it depends linearly on those present.

        Args:
            row: (d,) float64.
            correlation: ⟨row, c⟩.
            ridge: the ridge under which dependence is judged.
        """
        size, square = len(self.indices), float(row @ row)
        half, schur = self.factor.complement(self.rows[:size] @ row, square + self.ridge)
        apart = schur - self.ridge if size else square  # which a large ridge would swallow
        if apart + ridge <= NOISE * square:
            return False
        if size == len(self.rows):
            self.rows = np.concatenate([self.rows, np.empty((max(8, size), self.rows.shape[1]))])
        self.rows[size] = row
        self.factor.append(half, schur)
        self.indices.append(index)
        self.squares.append(square)
        self.right.append(correlation)
        return True

    def delete(self, position: int) -> None:
        """Drop the atom at a position."""
        self.factor.delete(position)
        self.rows = np.delete(self.rows, position, axis=0)
        del self.indices[position], self.squares[position], self.right[position]

    def solve(self) -> np.ndarray:
        """(|I|,) the ridge solution."""
        return self.factor.solve(np.array(self.right))


class PursuitState:
    """Passes over the atoms that are left, all against the same target.

    Call `ready`; while it is true, find the available atom that correlates most with `residual` and `apply` it.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.available = np.ones(problem.atoms.shape[0], bool)
        self.indices: list[int] = []
        self.weights: list[float] = []
        self.residuals: list[float] = []
        self.passes: list[int] = []
        self.pass_steps: list[int] = []
        self.drops = 0
        self.finished = problem.budget == 0 or problem.target_norm == 0
        self._open_pass()

    def snapshot(self) -> PursuitState:
        """This state as it is now, to come back to: what follows here changes nothing that it holds.

        To go back to it is to give up what followed: only one of the two may go on.
        """
        twin = copy.copy(self)
        twin.curve, twin.support = self.curve[:], self.support.snapshot()
        return twin

    def _open_pass(self) -> None:
        self.support = Support(self.problem.ridge, np.empty((8, len(self.problem.target))))
        self.residual, self.pass_weights = self.problem.target, np.zeros(0)
        self.norm, self.relative, self.curve = self.problem.target_norm, 1.0, list[float]()
        self.without_ridge, self.pass_ended = False, False

    def ready(self) -> bool:
        """Whether another atom has to be chosen; closes a pass that is over and opens the next."""
        while not self.finished:
            steps_left = self.problem.budget - len(self.indices) - len(self.curve)
            if not self.pass_ended and steps_left > 0 and self.relative >= self.problem.tol:
                return True
            self._close_pass()
        return False

    def _close_pass(self) -> None:
        chosen = self.support.indices
        if chosen:
            self.passes = [*self.passes, len(self.indices)]
            self.pass_steps = [*self.pass_steps, len(self.residuals)]
            self.available = self.available.copy()
            self.available[chosen] = False
            self.indices = self.indices + chosen
            self.weights = self.weights + self.pass_weights.tolist()
            self.residuals = self.residuals + self.curve
        self.finished = not chosen or not self.problem.restart or len(self.indices) >= self.problem.budget
        self._open_pass()

    def apply(self, atom: int) -> None:
        """One step with the atom that correlates most with the residual."""
        problem, support = self.problem, self.support
        before = (support.indices[:], self.without_ridge)
        if atom in support.indices or not self._append(atom):
            self.pass_ended = True
            return
        self.without_ridge = len(support.indices) == 1 and problem.first_ridge != problem.ridge
        self.pass_weights = np.array(support.right) / support.squares if self.without_ridge else support.solve()
        if problem.positive:
            self._drop_negative()
        self.residual = problem.target - self.pass_weights @ support.rows[: len(self.pass_weights)]
        self.norm = float(np.linalg.norm(self.residual))
        self.relative = self.norm / problem.target_norm
        self.curve.append(self.relative)
        self.pass_ended = (support.indices, self.without_ridge) == before  # it would only repeat itself

    def _append(self, atom: int) -> bool:
        row = np.ascontiguousarray(self.problem.atoms[np.array([atom])][0], dtype=np.float64)
        ridge = self.problem.ridge if self.support.indices else self.problem.first_ridge
        return self.support.append(atom, row, float(self.problem.base[atom]), ridge)

    def _drop_negative(self) -> None:
        """Drop the most negative weight and solve again until none is negative."""
        weights = self.pass_weights
        while len(weights):
            zero = NOISE * max(float(np.abs(weights).max()), self.problem.weight_scale)
            if weights.min() >= -zero:
                break
            self.support.delete(int(np.argmax(weights <= weights.min() + zero)))
            self.without_ridge = False
            self.drops += 1
            weights = self.support.solve()
        self.pass_weights = np.maximum(weights, 0.0)
