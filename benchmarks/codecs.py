"""What float16, int8 and one bit a number cost in a feature store, and what they change in the selections.

    python -m benchmarks.codecs                                # rows made here, and those of runs/demo if there is one
    python -m benchmarks.codecs --run runs/x --budgets 5% 20%

Every line is one store on disk that holds the same rows. Beside what float32 rows give:

    bytes     of `features` and `scales`, a row at one checkpoint
    cosine    between a row and what is read of it, on average
    error     of the inner products between rows, root mean square, as a share of their own spread (standard deviation)
    rank      Spearman's correlation of these products
    tagcos, less, gtp   share of the chosen rows that are chosen from the float32 store too; in brackets what the choice
              is worth, measured on the float32 rows, beside the choice from those: for LESS the mean score, for GTP the
              length of what is left of the target's mean, for TAGCOS of the pool's, under the best non-negative weights
    read      nanoseconds of CPU time a number, for a pass over one checkpoint

"another k-means" is TAGCOS with another seed on the float32 rows, "another projection" float32 rows of another seed of
the projection: what is left to chance anyway.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from pursuit.gradients.project import make_projection
from pursuit.gradients.shards import begin_store
from pursuit.selectors import Gtp, Less, Selector, Tagcos
from pursuit.selectors.budget import parse_budget
from pursuit.selectors.comparison import smallest_residual
from pursuit.store.codecs import encode
from pursuit.store.features import Features, FeatureStore

DTYPES = ("float32", "float16", "bfloat16", "int8", "bits")
COORDINATES = 16_384  # of a gradient made here, before it is projected
SPREADS = {"made here, coordinates of like size": 0.3, "made here, coordinates of very different size": 1.0}
CLUSTERS = 40
SHARD_ROWS = 512
PAIRED = 400  # rows whose inner products are compared
BLOCK_ROWS = 256

Rows = list[NDArray[np.float32]]  # one matrix (n, d) a checkpoint


class Gradients(NamedTuple):
    """Unit rows of a pool and of a target."""

    pool: Rows
    target: Rows
    subtasks: Sequence[str]
    weights: Sequence[float]


def made_here(rows: int, dimension: int, spread: float, seed: int) -> Gradients:
    """Gradients around centres that share a drift, projected with `seed`.

    Args:
        spread: standard deviation of the logarithm of the coordinates' sizes.
    """
    random = np.random.default_rng(0)
    sizes = random.lognormal(sigma=spread, size=COORDINATES).astype(np.float32)
    drift = random.standard_normal(COORDINATES, dtype=np.float32)
    centres = random.standard_normal((CLUSTERS, COORDINATES), dtype=np.float32) + drift
    owner = random.choice(CLUSTERS, rows, p=random.dirichlet(np.ones(CLUSTERS)))
    subtask = np.repeat([0, 1], 16)
    projection = make_projection("sparse", COORDINATES, dimension, seed)

    def projected(which: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.empty((len(which), dimension), np.float32)
        for start in range(0, len(which), BLOCK_ROWS):
            mine = which[start : start + BLOCK_ROWS]
            block = sizes * (centres[mine] + 1.5 * random.standard_normal((len(mine), COORDINATES), dtype=np.float32))
            accumulator = projection.start(len(mine), torch.device("cpu"))
            projection.add(accumulator, 0, torch.from_numpy(block))
            found[start : start + len(mine)] = projection.finish(accumulator).numpy()
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    pool, target = ([projected(which) for _ in range(2)] for which in (owner, subtask))
    return Gradients(pool, target, [f"task {number}" for number in subtask], [0.6, 0.4])


def of_a_run(folder: Path) -> Gradients:
    """The rows of a run's store and of its target's."""
    pool = FeatureStore(folder / "features")
    target = FeatureStore(next(folder.glob("targets/*/features")))
    rows, goals = ([matrix[:] for matrix in _matrices(store)] for store in (pool, target))
    return Gradients(rows, goals, ["target"] * target.num_rows, pool.manifest["weights"])


def _matrices(store: FeatureStore) -> list[Any]:
    features = store.features(pa.table({"source": [""] * store.num_rows}))
    return [features.checkpoint(number) for number in range(features.num_checkpoints)]


def stored(folder: Path, matrices: Rows, names: Sequence[str], weights: Sequence[float], dtype: str) -> Features:
    """The rows in a store on disk."""
    count, dimension = matrices[0].shape
    store = begin_store(folder, count, dimension, weights, dtype=dtype, shard_rows=SHARD_ROWS, provenance={})
    for checkpoint, matrix in enumerate(matrices):
        for shard in range(store.num_shards):
            rows = store.shard_range(shard)
            ones = {name: torch.ones(len(rows)) for name in ("norms", "gradient_norms", "losses")}
            coded = encode(torch.from_numpy(matrix[rows.start : rows.stop]), dtype)
            store.write(checkpoint, shard, {**coded, **ones})
    return store.features(pa.table({"source": list(names)}))


def bytes_a_row(folder: Path, features: Features) -> float:
    """What the files hold beside their three numbers a row, headers included."""
    files = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    return files / features.num_rows / features.num_checkpoints - 12


def few_rows(features: Features) -> NDArray[np.float64]:
    """Some rows at the first checkpoint, the same ones of every store."""
    chosen = np.sort(np.random.default_rng(1).permutation(features.num_rows)[:PAIRED])
    return features.checkpoint(0)[chosen].astype(np.float64)


def reading(features: Features) -> float:
    """Nanoseconds of CPU time a number, the least of five passes."""
    matrix, took = features.checkpoint(0), []
    for _ in range(5):
        started = time.process_time()
        for start in range(0, features.num_rows, BLOCK_ROWS):
            matrix[start : start + BLOCK_ROWS]
        took.append(time.process_time() - started)
    return 1e9 * min(took) / features.num_rows / features.dimension


def choose(selector: Selector, pool: Features, target: Features, budget: int, seed: int = 0) -> NDArray[np.int64]:
    """The rows that a method chooses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return selector.select(pool, budget, target=target, seed=seed).indices


def worth(method: str, pool: Features, target: Features, rows: NDArray[np.int64]) -> float:
    """LESS: the mean score of the rows. TAGCOS, GTP: the relative residual of what they follow."""
    if method == "less":
        names = np.array(target.rows["source"].to_pylist())
        scores = np.zeros((len(rows), len(set(names))))
        for number, weight in enumerate(pool.weights):
            goals = target.checkpoint(number)[:]
            means = np.stack([goals[names == name].mean(axis=0) for name in sorted(set(names))])
            scores += weight * pool.checkpoint(number)[rows] @ means.T
        return float(scores.max(axis=1).mean())
    goal = (target if method == "gtp" else pool).average()[:].mean(axis=0, dtype=np.float64)
    return smallest_residual(pool.average()[rows].astype(np.float64), goal)


def compare(title: str, gradients: Gradients, budgets: Sequence[str], other: Gradients | None) -> None:
    """Print the tables of one pool."""
    with tempfile.TemporaryDirectory(prefix="pursuit-codecs-") as name:
        stores = {}
        for dtype in DTYPES:
            place = Path(name) / dtype
            names = ["pool"] * len(gradients.pool[0])
            pool = stored(place / "pool", gradients.pool, names, gradients.weights, dtype)
            target = stored(place / "target", gradients.target, gradients.subtasks, gradients.weights, dtype)
            stores[dtype] = pool, target
            if dtype == "float32":
                exact = few_rows(pool)
                print(f"\n{title}: {pool.num_rows:,} rows, d={pool.dimension:,}, {pool.num_checkpoints} checkpoints")
            size = bytes_a_row(place / "pool", pool)
            cosine = np.einsum("nd,nd->n", few_rows(pool), exact).mean()
            print(
                f"  {dtype:<20}{size:6,.0f} bytes   read {reading(pool):.2f} ns   cosine {cosine:.4f}   "
                f"{differences(pool, exact)}"
            )
        if other is not None:
            again = Features.from_array(np.stack(other.pool, axis=1), weights=other.weights)
            goal = Features.from_array(np.stack(other.target, axis=1), weights=other.weights, sources=other.subtasks)
            stores["another projection"] = again, goal
            print(f"  {'another projection':<60}{differences(again, exact)}")
        for budget in budgets:
            compare_choices(stores, parse_budget(budget, pool.num_rows))


def differences(pool: Features, exact: NDArray[np.float64]) -> str:
    """How far inner products of some rows are from those of the float32 rows."""
    rows = few_rows(pool)
    pairs = np.triu_indices(len(rows), 1)
    found, wanted = (rows @ rows.T)[pairs], (exact @ exact.T)[pairs]
    error = np.sqrt(np.square(found - wanted).mean()) / wanted.std()
    return f"error {error:7.4f}   rank {spearmanr(found, wanted).statistic:.4f}"


def compare_choices(stores: dict[str, tuple[Features, Features]], budget: int) -> None:
    """Print what each method chooses from each store, beside its choice from float32 rows."""
    pool, target = stores["float32"]
    methods: dict[str, Selector] = {"tagcos": Tagcos(), "less": Less(), "gtp": Gtp()}
    first = {name: choose(method, pool, target, budget) for name, method in methods.items()}
    best = {name: worth(name, pool, target, rows) for name, rows in first.items()}

    def line(label: str, choices: dict[str, NDArray[np.int64]]) -> None:
        shares = [
            f"{name} {len(np.intersect1d(rows, first[name])) / budget:.3f} "
            f"({worth(name, pool, target, rows) / best[name]:.3f} ×)"
            for name, rows in choices.items()
        ]
        print(f"    {label:<20}" + "   ".join(shares), flush=True)

    print(f"  {budget} rows chosen")
    for label, (coded, goal) in stores.items():
        if label != "float32":
            line(label, {name: choose(method, coded, goal, budget) for name, method in methods.items()})
    line("another k-means", {"tagcos": choose(methods["tagcos"], pool, target, budget, seed=1)})
    random = np.random.default_rng(2).permutation(pool.num_rows)[:budget]
    line("at random", dict.fromkeys(methods, random))


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a run with a target")
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--dimension", type=int, default=1_024)
    parser.add_argument("--budgets", nargs="+", default=["5%"])
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for title, spread in SPREADS.items():
        first, second = (made_here(arguments.rows, arguments.dimension, spread, seed) for seed in (0, 1))
        compare(title, first, arguments.budgets, second)
    if arguments.run.exists():
        compare(arguments.run.name, of_a_run(arguments.run), arguments.budgets, None)


if __name__ == "__main__":
    main()
