"""Matching pursuit against its textbook form, and the memory of pursuit and k-means as the pool grows.

    python -m benchmarks.solvers            # n=10,000, d=1,024, k=200; memory at n=5,000 and 50,000
    python -m benchmarks.solvers --quick    # a fifth of the rows
    python -m benchmarks.solvers --device cuda [--wide] [--forms]   # ours on a GPU too; no form of the textbook's
    python -m benchmarks.solvers --wide     # n=10,000, d=8,192, k=500 against "solve" alone; 2 GB of memory

All forms run in one process on the same arrays, with the same number of BLAS threads; equal indices are checked. Two
forms of the textbook algorithm are timed: "solve" is as kind to it as can be (float64 atoms ready in memory, Gauss
elimination in each step), "lstsq" solves each step's problem by singular values as the papers' released code does.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import textbook_pursuit as textbook
from pursuit.solvers.clusters import kmeans
from pursuit.solvers.matching_pursuit import PursuitResult, matching_pursuit
from pursuit.solvers.rows import Matrix

MEMORY_BYTES = 64 << 20
FORMS = ("solve", "lstsq")  # of the textbook algorithm


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (n, d) at unit norm, float32 as a feature store serves them."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_atoms(n: int, d: int) -> np.ndarray:
    """Independent directions: the hardest case for caching, nothing predicts the next choice."""
    return unit_rows(np.random.default_rng(0).standard_normal((n, d)))


def clustered_atoms(n: int, d: int, clusters: int = 20) -> np.ndarray:
    """Directions around `clusters` centres and one common drift, as gradients of one model are."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((clusters, d)) + rng.standard_normal(d)
    return unit_rows(centres[rng.integers(0, clusters, n)] + rng.standard_normal((n, d)))


def compare(
    name: str, atoms: np.ndarray, budget: int, ridge: float, forms: tuple[str, ...], device: str
) -> None:
    """Print the times of all forms and how many times faster ours is."""
    target = atoms.mean(axis=0, dtype=np.float64)
    ours, result = timed(atoms, target, budget, ridge)
    line = f"{name:<10} ridge={ridge:<3g} ours {ours:6.3f} s"
    if device != "cpu":
        there, same = timed(torch.from_numpy(atoms).to(device), target, budget, ridge)
        if same.indices.tolist() != result.indices.tolist():
            raise SystemExit(f"{name}: on {device} other atoms are chosen")
        line += f"   on {device} {there:6.3f} s = {ours / there:4.1f} ×"
    exact = atoms.astype(np.float64)  # given to the textbook form for free
    plain = textbook.solve_ridge
    for form in forms:
        textbook.solve_ridge = {"solve": plain, "lstsq": solve_by_lstsq}[form]
        started = time.perf_counter()
        indices, _, _ = textbook.textbook_pursuit(exact, target, budget, ridge)
        seconds = time.perf_counter() - started
        line += f"   {form} {seconds:6.2f} s = {seconds / ours:6.1f} ×"
        if indices != result.indices.tolist():
            raise SystemExit(f"{name}: the fast pursuit chose other atoms than the textbook one ({form})")
    textbook.solve_ridge = plain
    print(f"{line}   same indices; passes {len(result.passes)}, drops {result.drops}", flush=True)


def timed(atoms: Matrix, target: np.ndarray, budget: int, ridge: float) -> tuple[float, PursuitResult]:
    """Median seconds of three, and what was chosen."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        result = matching_pursuit(atoms, target, budget, ridge=ridge)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds)), result


def solve_by_lstsq(rows: np.ndarray, target: np.ndarray, ridge: float) -> np.ndarray:
    """The ridge problem of one step by singular values."""
    gram = rows @ rows.T + ridge * np.eye(len(rows))
    return np.linalg.lstsq(gram, rows @ target, rcond=None)[0]


def peak_of(task: str, path: Path) -> float:
    """Growth in peak memory (MiB) of a fresh process that runs a task on a matrix on disk."""
    command = [sys.executable, "-m", "benchmarks.solvers", "--task", task, "--matrix", str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident() -> float:
    """Resident memory of this process in MiB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def measure_peak(task: str, path: Path) -> float:
    """Run a task on a matrix on disk; MiB by which resident memory rose at its highest."""
    matrix = ReadRows(path)
    warm = random_atoms(2000, 64)  # libraries loaded, their buffers made, before the measurement
    kmeans(warm, 20, seed=0)
    matching_pursuit(warm, warm.mean(axis=0), 20)
    before, highest, stop = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            highest[0] = max(highest[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    if task == "pursuit":
        target = sum(matrix[start : start + 1000].sum(0) for start in range(0, matrix.shape[0], 1000)) / matrix.shape[0]
        matching_pursuit(matrix, target, 50, memory_bytes=MEMORY_BYTES)
    else:  # the sample is 20 · 256 rows, whatever n
        kmeans(matrix, 20, seed=0, iterations=5)
    stop.set()
    watcher.join()
    return highest[0] - before


class ReadRows:
    """A matrix in a .npy file, read with file calls: mapped pages would count as memory of the process."""

    def __init__(self, path: Path) -> None:
        self.mapped = np.load(path, mmap_mode="r")
        self.path, self.shape = path, self.mapped.shape

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        width, start_of_data = self.shape[1], self.mapped.offset
        numbers = np.arange(self.shape[0])[rows]
        with open(self.path, "rb") as handle:
            if len(numbers) and numbers[-1] - numbers[0] == len(numbers) - 1:
                handle.seek(start_of_data + int(numbers[0]) * width * 4)
                return np.fromfile(handle, np.float32, len(numbers) * width).reshape(-1, width)
            out = np.empty((len(numbers), width), np.float32)
            for place, number in enumerate(numbers):
                handle.seek(start_of_data + int(number) * width * 4)
                out[place] = np.fromfile(handle, np.float32, width)
        return out


def memory(small: int, d: int) -> None:
    """Print the peaks at n and 10 n."""
    with tempfile.TemporaryDirectory() as folder:
        for n in (small, 10 * small):
            path = Path(folder) / f"{n}.npy"
            matrix = np.lib.format.open_memmap(path, "w+", np.float32, (n, d))
            for start in range(0, n, 5000):
                matrix[start : start + 5000] = clustered_atoms(min(5000, n - start), d)
            del matrix
            peaks = {task: peak_of(task, path) for task in ("pursuit", "kmeans")}
            print(
                f"n={n:<8,} matrix {n * d * 4 / 2**20:6.0f} MiB   peak of pursuit {peaks['pursuit']:5.0f} MiB, "
                f"of k-means {peaks['kmeans']:5.0f} MiB   "
                f"(bound {MEMORY_BYTES >> 20} MiB; k-means also holds its sample, {20 * 256 * d * 4 >> 20} MiB)"
            )


def main() -> None:
    """Print every comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--forms", nargs="*", default=FORMS, choices=FORMS)
    parser.add_argument("--task", choices=["pursuit", "kmeans"], help=argparse.SUPPRESS)
    parser.add_argument("--matrix", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(measure_peak(arguments.task, arguments.matrix))
        return
    forms = tuple(arguments.forms)
    if arguments.wide:
        n, d, k = 10_000, 8_192, 500
        print(f"matching pursuit, n={n:,}, d={d:,}, k={k}")
        compare("random", random_atoms(n, d), k, 1.0, forms[:1], arguments.device)
        compare("clustered", clustered_atoms(n, d), k, 1.0, forms[:1], arguments.device)
        return
    n, d, k = (2_000, 1_024, 100) if arguments.quick else (10_000, 1_024, 200)
    print(f"matching pursuit, n={n:,}, d={d:,}, k={k}")
    for ridge in (1.0, 0.0):
        compare("random", random_atoms(n, d), k, ridge, forms, arguments.device)
        compare("clustered", clustered_atoms(n, d), k, ridge, forms, arguments.device)
    compare("one centre", clustered_atoms(n, d, 1), k, 1.0, forms, arguments.device)
    memory(n // 2, d)


if __name__ == "__main__":
    main()
