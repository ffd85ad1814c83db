"""GTP against textbook matching pursuit, which solves for all weights anew in every step.

    python -m benchmarks.gtp                                        # n=10,000, d=1,024, k=50, 100, 200
    python -m benchmarks.gtp --rows 50000 --dimension 2048 --budgets 250 500 1000

One process, the same arrays, the same number of BLAS threads. The textbook multiplies all atoms by the residual and
solves its non-negative least squares from nothing in each step; a ratio above 1 in time is
ours faster, below 1 in residual ours closer.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from benchmarks.solvers import clustered_atoms, random_atoms
from pursuit.solvers import compressive_pursuit, matching_pursuit, nnls


def textbook(atoms: np.ndarray, target: np.ndarray, budgets: list[int]) -> dict[int, tuple[float, float]]:
    """Seconds and relative residual at each budget, from one run up to the largest."""
    found, chosen = {}, list[int]()
    residual, started = target, time.perf_counter()
    for step in range(1, max(budgets) + 1):
        scores = atoms @ residual.astype(atoms.dtype)
        scores[chosen] = -np.inf
        chosen.append(int(scores.argmax()))
        rows = atoms[chosen].astype(np.float64)
        residual = target - solve(rows, target) @ rows
        if step in budgets:
            norm = float(np.linalg.norm(residual) / np.linalg.norm(target))
            found[step] = (time.perf_counter() - started, norm)
    return found


def solve(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Non-negative weights; by one Cholesky factor where plain least squares is non-negative already."""
    gram, right = rows @ rows.T, rows @ target
    weights = cho_solve(cho_factor(gram), right)
    return weights if weights.min() >= 0 else nnls(gram, right)


def main() -> None:
    """Print every comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dimension", type=int, default=1_024)
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200])
    arguments = parser.parse_args()
    print(f"n={arguments.rows:,}, d={arguments.dimension:,}")
    for name, make in (("random", random_atoms), ("clustered", clustered_atoms)):
        atoms = make(arguments.rows, arguments.dimension)
        target = atoms.mean(axis=0, dtype=np.float64)
        plain = textbook(atoms, target, arguments.budgets)
        for budget in arguments.budgets:
            seconds, norm = plain[budget]
            line = f"{name:<10} k={budget:<5} textbook {seconds:7.2f} s {norm:.4f}"
            for refine in ("swaps", "none"):
                started = time.perf_counter()
                result = compressive_pursuit(atoms, target, budget, refine=refine)
                took = time.perf_counter() - started
                line += f"   {refine} {took:6.2f} s = {seconds / took:5.1f} ×, residual {result.residual / norm:.3f} ×"
            started = time.perf_counter()
            fast = matching_pursuit(atoms, target, budget, ridge=0.0)
            took = time.perf_counter() - started
            line += f"   our omp {took:6.2f} s = {seconds / took:5.1f} ×, residual {fast.residuals.min() / norm:.3f} ×"
            print(line, flush=True)


if __name__ == "__main__":
    main()
