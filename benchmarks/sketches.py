"""Other ways to keep d numbers of a row: is one of them closer to the row, for nothing?

    python -m benchmarks.sketches RUN [--dimensions 256 1024] [--known 64] [--no-target]

The numbers that stand in a run's store (many: the experiments keep 8,192 in float32) are taken as the rows themselves,
and each way makes d numbers of them. What is learnt from rows is learnt from `--known` random rows of the pool (half of
it without) and from the target, at all checkpoints together, since TAGCOS and CRAIG add the checkpoints' rows up.
Everything is measured on the other half: rank correlation and root mean square error of the rows' inner products at the
last checkpoint, and what each method chooses again of the tenth that it chooses from the rows themselves. Means over
two seeds of each way.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import spearmanr

from pursuit import Features, Run
from pursuit.compare.plan import parse_method
from pursuit.selectors import method

METHODS = ("less", "gtp", "kcenter", "craig", "tagcos(clusters=10)")
Rows = np.ndarray
Way = Callable[[Rows, int, np.random.Generator], Callable[[Rows], Rows]]  # known rows, d, random → rows to d numbers


def count_sketch(known: Rows, dimension: int, random: np.random.Generator, signs: int = 1) -> Callable[[Rows], Rows]:
    """Every coordinate, with a sign, into one bucket of d; or the mean of several such sketches."""
    size = known.shape[1]
    matrix = np.zeros((size, dimension), np.float32)
    for _ in range(signs):
        buckets = random.permutation(np.resize(np.arange(dimension), size))
        matrix[np.arange(size), buckets] += random.choice((-1.0, 1.0), size) / signs**0.5
    return lambda rows: rows @ matrix


def dense(known: Rows, dimension: int, random: np.random.Generator) -> Callable[[Rows], Rows]:
    """Random signs everywhere."""
    matrix = random.choice((-1.0, 1.0), (known.shape[1], dimension)).astype(np.float32) / dimension**0.5
    return lambda rows: rows @ matrix


def orthogonal(known: Rows, dimension: int, random: np.random.Generator) -> Callable[[Rows], Rows]:
    """Gaussian directions made orthonormal, and scaled so that lengths are kept on average."""
    basis, _ = np.linalg.qr(random.standard_normal((known.shape[1], dimension)).astype(np.float32))
    return lambda rows: rows @ basis * (known.shape[1] / dimension) ** 0.5


def principal(known: Rows, dimension: int, random: np.random.Generator) -> Callable[[Rows], Rows]:
    """The directions in which known rows are longest, and nothing else."""
    basis = _leading(known, dimension)
    return lambda rows: rows @ basis


def principal_and_rest(share: float) -> Way:
    """A share of the d numbers along the leading directions of known rows, exactly; a sketch of what is left."""

    def way(known: Rows, dimension: int, random: np.random.Generator) -> Callable[[Rows], Rows]:
        basis = _leading(known, max(1, round(share * dimension)))
        rest = count_sketch(known, dimension - basis.shape[1], random)

        def reduce(rows: Rows) -> Rows:
            exact = rows @ basis
            return np.concatenate([exact, rest(rows - exact @ basis.T)], axis=1)

        return reduce

    return way


def _leading(known: Rows, count: int) -> Rows:
    return np.linalg.svd(known, full_matrices=False)[2][:count].T


WAYS: dict[str, Way] = {
    "count sketch (ours)": count_sketch,
    "mean of 4 count sketches": lambda known, d, random: count_sketch(known, d, random, 4),
    "dense signs": dense,
    "orthogonal directions": orthogonal,
    "principal directions": principal,
    "1 direction + sketch": lambda known, d, random: principal_and_rest(1 / d)(known, d, random),
    "1/8 directions + sketch": principal_and_rest(1 / 8),
    "1/4 directions + sketch": principal_and_rest(1 / 4),  # as `--features.directions 0.25`
    "1/2 directions + sketch": principal_and_rest(1 / 2),
}


class Held:
    """A run's rows at every checkpoint: some to learn from, a half to measure on, and the target's, as each method gets
    them.
    """

    def __init__(self, run: Run, known: int | None, with_target: bool) -> None:
        pool, targets = run.extract(), [run.target_features(follows=follows) for follows in (False, True)]
        order = np.random.default_rng(0).permutation(pool.num_rows)
        half = len(order) // 2
        self.mine = np.sort(order[half:])
        self.about, self.target_about = pool.rows.take(self.mine), targets[0].rows
        self.weights = pool.weights.tolist()
        self.rows = _matrices(pool, self.mine)
        self.targets = [_matrices(target, np.arange(target.num_rows)) for target in targets]
        learnt = _matrices(pool, order[: half if known is None else min(known, half)])
        self.known = np.concatenate([*learnt, *(rows for target in self.targets if with_target for rows in target)])

    def chosen(self, text: str, reduce: Callable[[Rows], Rows]) -> set[int]:
        """The tenth that a method chooses of reduced rows."""
        name, parameters = parse_method(text)
        selector = method(name, **parameters)
        pool = self._features(self.rows, self.about, reduce)
        target = self._features(self.targets[selector.follows_target], self.target_about, reduce)
        uses = selector.needs_target or selector.uses_target
        found = selector.select(pool, len(self.mine) // 10, target=target if uses else None)
        return set(found.indices.tolist())

    def _features(self, matrices: list[Rows], about: pa.Table, reduce: Callable[[Rows], Rows]) -> Features:
        made = Features.from_array(np.stack([reduce(rows) for rows in matrices], axis=1), weights=self.weights)
        made.rows = about
        return made


def _matrices(features: Features, rows: np.ndarray) -> list[Rows]:
    return [np.asarray(features.checkpoint(t)[rows], np.float32) for t in range(features.num_checkpoints)]


def main() -> None:
    """Print a table a dimension."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--known", type=int)
    parser.add_argument("--no-target", action="store_true")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # the methods' warnings about the pool
    held = Held(Run(asked.run), asked.known, not asked.no_target)
    last, upper = held.rows[-1], np.triu_indices(len(held.mine), 1)
    exact = (last @ last.T)[upper]
    whole = {text: held.chosen(text, lambda rows: rows) for text in METHODS}
    print(f"{asked.run}: {len(held.mine):,} rows of {last.shape[1]:,} numbers, {len(held.targets[0][0])} of the target")
    for dimension in asked.dimensions:
        print(f"\nd = {dimension:<24}  rank   error | kept: " + "  ".join(METHODS))
        for name, way in WAYS.items():
            found = []
            for seed in (0, 1):
                reduce = way(held.known, dimension, np.random.default_rng([7, seed]))
                small = reduce(last)
                products = (small @ small.T)[upper]
                kept = [len(held.chosen(text, reduce) & rows) / len(rows) for text, rows in whole.items()]
                error = np.sqrt(np.square(products - exact).mean())
                found.append([spearmanr(exact, products)[0], error, *kept])
            rank, error, *kept = np.mean(found, axis=0)
            shares = "  ".join(f"{share:{len(text)}.2f}" for text, share in zip(METHODS, kept, strict=True))
            print(f"{name:28} {rank:5.3f}  {error:6.4f} |       {shares}", flush=True)


if __name__ == "__main__":
    main()
