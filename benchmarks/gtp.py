"""GTP against textbook matching pursuit, which solves for all weights anew in every step.

    python -m benchmarks.gtp                                        # n=10,000, d=1,024, k=50, 100, 200
    python -m benchmarks.gtp --rows 50000 --dimension 2048 --budgets 250 500 1000
    python -m benchmarks.gtp --problems                             # residuals on the problems of the tests

One process, the same arrays, the same number of BLAS threads (set OMP_NUM_THREADS). CPU time is counted, because other
work on the machine disturbs it less than wall time; ours is the median of three. The textbook multiplies all atoms by
the residual and solves its non-negative least squares from nothing in each step; a ratio above 1 in time is ours
faster, below 1 in residual ours closer.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve

from benchmarks.solvers import clustered_atoms, random_atoms
from pursuit.solvers import compressive_pursuit, matching_pursuit, nnls, partitioned_pursuit

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from solver_matrices import PROBLEMS, matching_pursuit_with_nnls, problem


def textbook(atoms: np.ndarray, target: np.ndarray, budgets: list[int]) -> dict[int, tuple[float, float]]:
    """CPU seconds and relative residual at each budget, from one run up to the largest."""
    found, chosen = {}, list[int]()
    residual, started = target, time.process_time()
    for step in range(1, max(budgets) + 1):
        scores = atoms @ residual.astype(atoms.dtype)
        scores[chosen] = -np.inf
        chosen.append(int(scores.argmax()))
        rows = atoms[chosen].astype(np.float64)
        residual = target - solve(rows, target) @ rows
        if step in budgets:
            norm = float(np.linalg.norm(residual) / np.linalg.norm(target))
            found[step] = (time.process_time() - started, norm)
    return found


def solve(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Non-negative weights; by one Cholesky factor where plain least squares is non-negative already."""
    gram, right = rows @ rows.T, rows @ target
    weights = cho_solve(cho_factor(gram), right)
    return weights if weights.min() >= 0 else nnls(gram, right)


def ours(form: str, atoms: np.ndarray, target: np.ndarray, budget: int) -> float:
    """The relative residual that one of our solvers ends with."""
    if form == "omp":
        return float(matching_pursuit(atoms, target, budget, ridge=0.0).residuals.min())
    return compressive_pursuit(atoms, target, budget, refine="none" if form == "none" else "swaps").residual


def problems(budget: int = 60, seeds: int = 3) -> None:
    """Print residuals relative to textbook matching pursuit's on the problems of tests/test_solvers_compressive.py."""
    print(f"n=3,000, d=400, k={budget}; residual relative to matching pursuit's, smallest–largest of {seeds} seeds")
    for kind, goal in PROBLEMS:
        found: dict[str, list[float]] = {"none": [], "swaps": [], "3 partitions": []}
        reference = []
        for seed in range(seeds):
            atoms, target = problem(kind, goal, seed=seed)
            chosen = atoms[matching_pursuit_with_nnls(atoms, target, budget)]
            norm = float(np.linalg.norm(target - solve(chosen, target) @ chosen) / np.linalg.norm(target))
            reference.append(norm)
            for form in ("none", "swaps"):
                found[form].append(ours(form, atoms, target, budget) / norm)
            found["3 partitions"].append(partitioned_pursuit(atoms, target, budget, 3).residual / norm)
        shown = "   ".join(f"{form} {min(v):.3f}–{max(v):.3f}" for form, v in found.items())
        print(f"{kind:<10} {goal:<7} matching pursuit {np.mean(reference):.4f}   {shown}", flush=True)


def main() -> None:
    """Print every comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dimension", type=int, default=1_024)
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--forms", nargs="+", choices=["swaps", "none", "omp"], default=["swaps", "none", "omp"])
    parser.add_argument("--problems", action="store_true", help="residuals on the problems of the tests instead")
    arguments = parser.parse_args()
    if arguments.problems:
        problems()
        return
    print(f"n={arguments.rows:,}, d={arguments.dimension:,}, {torch.get_num_threads()} threads, CPU seconds")
    for name, make in (("random", random_atoms), ("clustered", clustered_atoms)):
        atoms = make(arguments.rows, arguments.dimension)
        target = atoms.mean(axis=0, dtype=np.float64)
        plain = textbook(atoms, target, arguments.budgets)
        for budget in arguments.budgets:
            seconds, norm = plain[budget]
            line = f"{name:<10} k={budget:<5} textbook {seconds:7.2f} s {norm:.4f}"
            for form in arguments.forms:
                times = []
                for _ in range(3):
                    started = time.process_time()
                    residual = ours(form, atoms, target, budget)
                    times.append(time.process_time() - started)
                took = float(np.median(times))
                line += f"   {form} {took:6.2f} s = {seconds / took:5.1f} ×, residual {residual / norm:.3f} ×"
            print(line, flush=True)


if __name__ == "__main__":
    main()
