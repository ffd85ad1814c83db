"""GTP and TAGCOS on pools larger than memory: time by part, peak memory, and how both grow with the pool.

    python -m benchmarks.scale                                        # 10,000 and 100,000 rows
    python -m benchmarks.scale --rows 10000 100000 1000000            # 2 GB of features at the largest

Writes a store of features (float16, one checkpoint, clustered directions) to a temporary folder a shard at a time, and
chooses 5 % of the rows with each method, each in a process of its own. Memory is anonymous memory (what the process
allocated; the system cannot drop it) and the whole resident set, which includes pages of mapped files that it can drop.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pursuit.files import write_json
from pursuit.selectors import Gtp, Tagcos
from pursuit.store.features import FeatureStore
from pursuit.store.shard_files import write_shard

SHARD_ROWS = 10_000
CLUSTERS = 200
PARTS = {
    "gtp": [
        ("pursuit.selectors.stacked", "_mean", "mean"),
        ("pursuit.selectors.stacked", "subspace", "subspace"),
        ("pursuit.selectors.stacked", "_project", "projection"),
        ("pursuit.selectors.gtp", "compressive_pursuit", "pursuit"),
    ],
    "tagcos": [
        ("pursuit.selectors.tagcos", "kmeans", "k-means"),
        ("pursuit.selectors.tagcos", "_pursue_centre", "reading the clusters and pursuits"),
        ("pursuit.selectors.tagcos", "matching_pursuit", "pursuits alone"),
    ],
}


def write_store(folder: Path, rows: int, dimension: int) -> None:
    """A store of unit rows around centres that share a drift, as gradients of one model do."""
    names = [f"{number:05d}.safetensors" for number in range(-(-rows // SHARD_ROWS))]
    write_json(
        folder / "manifest.json",
        {
            "num_rows": rows, "weights": [1.0], "dimension": dimension, "shard_rows": SHARD_ROWS, "provenance": {},
            "provenance_digest": "benchmark", "dtype": "float16",
        },
    )  # fmt: skip
    (folder / "checkpoint-00").mkdir()
    random = np.random.default_rng(0)
    centres = random.standard_normal((CLUSTERS, dimension)) + random.standard_normal(dimension)
    popularity = random.dirichlet(np.ones(CLUSTERS))
    for number, name in enumerate(names):
        count = min(SHARD_ROWS, rows - number * SHARD_ROWS)
        matrix = random.standard_normal((count, dimension), dtype=np.float32)
        matrix += centres.astype(np.float32)[random.choice(CLUSTERS, count, p=popularity)]
        norms = np.linalg.norm(matrix, axis=1)
        column = torch.from_numpy(norms)
        tensors = {
            "features": torch.from_numpy(matrix / norms[:, None]).half(), "norms": column,
            "gradient_norms": column.clone(), "losses": column.clone(),
        }  # fmt: skip
        write_shard(folder / "checkpoint-00" / name, tensors, "benchmark")


def memory() -> tuple[int, int]:
    """Anonymous and resident memory of this process in KiB (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]), int(lines["VmRSS"].split()[0])


def timed(module: str, name: str, seconds: dict[str, float], part: str) -> None:
    """Replace a function of a module by one that also adds up its seconds."""
    function: Callable[..., Any] = getattr(import_module(module), name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[part] += time.perf_counter() - started

    setattr(import_module(module), name, wrapped)


def measure(method: str, folder: Path, share: float) -> dict[str, Any]:
    """Select from a store in this process: seconds, CPU seconds, peaks in MiB, seconds by part."""
    seconds: dict[str, float] = defaultdict(float)
    for module, name, part in PARTS[method]:
        timed(module, name, seconds, part)
    peaks, stop = [0, 0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peaks[:] = [max(pair) for pair in zip(peaks, memory(), strict=True)]

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, cpu = time.perf_counter(), time.process_time()
    store = FeatureStore(folder)
    features = store.features(pa.table({"source": pa.array(["pool"] * store.num_rows, pa.string())}))
    seconds["opening the store, every shard checked"] = time.perf_counter() - started
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        selector = Gtp() if method == "gtp" else Tagcos()
        selection = selector.select(features, round(share * store.num_rows))
    whole, cpu = time.perf_counter() - started, time.process_time() - cpu
    stop.set()
    watcher.join()
    facts = selection.diagnostics
    passes = len(facts["passes"]) if "passes" in facts else sum(part.get("passes", 0) for part in facts["clusters"])
    inner = {f"pursuit: {part}": value for part, value in facts.get("seconds", {}).items()}
    return {
        "seconds": whole, "cpu": cpu, "anonymous": peaks[0] / 1024, "resident": peaks[1] / 1024,
        "parts": {**seconds, **inner}, "chosen": len(set(selection.indices.tolist())),
        "about": {name: facts[name] for name in ("residual", "rank", "filled") if name in facts}
        | {"passes": passes},
    }  # fmt: skip


def compare(rows: list[int], dimension: int, share: float, methods: list[str], place: Path | None) -> None:
    """Print a line for each size and method, and the growth from one size to the next."""
    last: dict[str, tuple[int, dict[str, Any]]] = {}
    for count in rows:
        with tempfile.TemporaryDirectory(prefix="pursuit-scale-", dir=place) as name:
            need = 2 * count * dimension * 2  # GTP puts the projected rows, float32, beside it
            if shutil.disk_usage(name).free < 2 * need:
                raise SystemExit(f"{count:,} rows need {2 * need / 1e9:.1f} GB of free disk at {name}")
            write_store(Path(name), count, dimension)
            for method in methods:
                task = ["--task", method, "--store", name, "--share", str(share)]
                command = [sys.executable, "-m", "benchmarks.scale", *task]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                report(method, count, found, last.get(method))
                last[method] = count, found


def report(method: str, count: int, found: dict[str, Any], before: tuple[int, dict[str, Any]] | None) -> None:
    """Print one measurement."""
    print(
        f"{method:<7} {count:>9,} rows, {found['chosen']:,} chosen: {found['seconds']:7.1f} s "
        f"({found['cpu']:.1f} s CPU), {found['anonymous']:,.0f} MiB anonymous, {found['resident']:,.0f} MiB resident"
    )
    print("        " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in found["parts"].items()))
    print("        " + ", ".join(f"{name} {value:.4g}" for name, value in found["about"].items()))
    if before:
        ratio, grown = count / before[0], found["cpu"] / before[1]["cpu"]
        print(f"        {ratio:.0f} × the rows: {grown:.1f} × the CPU time", flush=True)


def main() -> None:
    """Print every measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--dimension", type=int, default=1_024)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--methods", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--place", type=Path, help="folder with room for the stores")
    parser.add_argument("--task", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(measure(arguments.task, arguments.store, arguments.share)))
        return
    compare(arguments.rows, arguments.dimension, arguments.share, arguments.methods, arguments.place)


if __name__ == "__main__":
    main()
