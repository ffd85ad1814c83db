"""The textbook form of the pursuit, written from its definition and sharing nothing with the fast one."""

from __future__ import annotations

import numpy as np

TIE = 1e-12


def solve_ridge(rows: np.ndarray, target: np.ndarray, ridge: float) -> np.ndarray:
    return np.linalg.solve(rows @ rows.T + ridge * np.eye(len(rows)), rows @ target)


def textbook_pursuit(
    atoms: np.ndarray, target: np.ndarray, budget: int, ridge: float = 1.0, tol: float = 1e-4,
    positive: bool = True, ridge_first: bool = False,
) -> tuple[list[int], list[float], int]:  # fmt: skip
    """Indices, weights and how many were filled: every step multiplies all atoms and solves from scratch."""
    F, c = np.asarray(atoms, np.float64), np.asarray(target, np.float64)
    norms = np.linalg.norm(F, axis=1)
    biggest = norms.max(initial=0.0)
    budget = min(budget, len(F))
    left = list(range(len(F)))
    chosen: list[int] = []
    weights: list[float] = []
    while len(chosen) < budget and np.linalg.norm(c) > 0:
        picked, w = textbook_pass(F[left], c, budget - len(chosen), ridge, tol, positive, ridge_first, biggest)
        if not picked:
            break
        chosen += [left[i] for i in picked]
        weights += list(w)
        taken = set(picked)
        left = [atom for place, atom in enumerate(left) if place not in taken]
    missing = budget - len(chosen)
    scores = F @ c if positive else np.abs(F @ c)
    slack = TIE * biggest * np.linalg.norm(c)
    for _ in range(missing):
        best = max(scores[i] for i in left)
        atom = min(i for i in left if scores[i] >= best - slack)
        chosen.append(atom)
        weights.append(0.0)
        left.remove(atom)
    return chosen, weights, missing


def textbook_pass(F, c, steps, ridge, tol, positive, ridge_first, biggest):  # type: ignore[no-untyped-def]
    picked: list[int] = []
    w = np.zeros(0)
    r = c.copy()
    for _ in range(steps):
        if np.linalg.norm(r) / np.linalg.norm(c) < tol:
            break
        scores = F @ r if positive else np.abs(F @ r)
        j = int(np.flatnonzero(scores >= scores.max() - TIE * biggest * np.linalg.norm(r))[0])
        if j in picked:
            break
        rows = F[[*picked, j]]
        this_ridge = 0.0 if not picked and not ridge_first else ridge
        if depends(rows, this_ridge):
            break
        picked.append(j)
        w = solve_ridge(rows, c, this_ridge)
        scale = np.linalg.norm(c) * biggest / (biggest**2 + ridge)
        while positive and picked and w.min() < -TIE * max(scale, np.abs(w).max()):
            worst = int(np.flatnonzero(w <= w.min() + TIE * max(scale, np.abs(w).max()))[0])
            del picked[worst]
            w = solve_ridge(F[picked], c, ridge)
        w = np.maximum(w, 0.0) if positive else w
        r = c - F[picked].T @ w
    return picked, w


def depends(rows: np.ndarray, ridge: float) -> bool:
    """The last row's Schur complement vanishes against its square."""
    old, new = rows[:-1], rows[-1]
    square = new @ new
    gram = old @ old.T + ridge * np.eye(len(old))
    schur = square + ridge - (old @ new) @ np.linalg.solve(gram, old @ new)
    return bool(schur <= TIE * square)
