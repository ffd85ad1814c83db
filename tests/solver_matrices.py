"""Matrices as solvers may meet them, and the problems that compressive pursuit is measured on."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import numpy as np
from scipy.optimize import nnls as scipy_nnls

PROBLEMS = [(kind, goal) for kind in ("random", "clustered", "tight", "doubled") for goal in ("pool", "target")]


class Elsewhere:
    """A matrix whose rows lie elsewhere: passes run there, what is sent is pickled, and rows that are fetched count."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows, self.shape = rows, rows.shape
        self.passes = self.fetched = 0

    def __getitem__(self, rows):  # type: ignore[no-untyped-def]
        out = self._rows[rows].copy()
        self.fetched += len(out)
        return out

    def map_blocks(self, function, block_rows: int) -> Iterator[tuple]:  # type: ignore[no-untyped-def]
        self.passes += 1
        sent = pickle.loads(pickle.dumps(function))
        for start in range(0, len(self._rows), block_rows):
            rows = self._rows[start : start + block_rows]
            yield start, start + len(rows), pickle.loads(pickle.dumps(sent(rows, start)))


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def problem(kind: str, goal: str, n: int = 3000, d: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Atoms and a target: the mean of all, or of few with something that no atom holds."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((n, d))
    if kind != "random":
        centres = rng.standard_normal((20, d)) + rng.standard_normal(d)
        atoms = centres[rng.integers(0, 20, n)] + (0.3 if kind == "tight" else 1.0) * atoms
    if kind == "doubled":
        atoms = np.repeat(atoms[: n // 2], 2, axis=0)
    atoms = unit(atoms)
    few = atoms[:20].mean(axis=0)
    other = unit(rng.standard_normal((1, d)))[0] * 0.3 * np.linalg.norm(few)
    return atoms, atoms.mean(axis=0) if goal == "pool" else few + other


def matching_pursuit_with_nnls(atoms: np.ndarray, target: np.ndarray, k: int) -> list[int]:
    """Orthogonal matching pursuit with all weights solved again in every step."""
    chosen: list[int] = []
    residual = target
    while len(chosen) < k:
        scores = atoms @ residual
        scores[chosen] = -np.inf
        if scores.max() <= 1e-12:
            break
        chosen.append(int(scores.argmax()))
        weights, _ = scipy_nnls(atoms[chosen].T, target, maxiter=10_000)
        residual = target - weights @ atoms[chosen]
    return chosen
