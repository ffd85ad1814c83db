"""Peak memory of extraction and of selection as the pool grows tenfold: it must follow the settings, not the pool.

    python -m benchmarks.memory

Each measurement is a process of its own. Counted is its anonymous resident memory (Linux' RssAnon, read every 20 ms),
less what the same process held before the work began (libraries, model): pages of the memory-mapped store are the
operating system's to drop, and are left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SIZES = (2_000, 20_000)
DIMENSION = 1024


def anonymous_mb() -> float:
    """Anonymous resident memory of this process now, MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


class Watch:
    """Time and peak anonymous memory of a `with` block."""

    def __enter__(self) -> Watch:
        self.before = self.peak = anonymous_mb()
        self.start, self.done = time.perf_counter(), threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.02):
            self.peak = max(self.peak, anonymous_mb())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.seconds = time.perf_counter() - self.start

    def result(self) -> dict[str, float]:
        """JSON-able."""
        return {"before": self.before, "peak": self.peak, "seconds": self.seconds}


def extraction(rows: int) -> dict[str, float]:
    """Extract `rows` rows of 8–64 tokens with a small Llama, two checkpoints, batches of 2048 tokens."""
    import numpy as np
    import torch

    from benchmarks.extraction import add_lora
    from benchmarks.peers.common import small_llama
    from benchmarks.rows import random_rows
    from pursuit.gradients import AdamState, trainable_parameters
    from pursuit.gradients.extract import extract
    from pursuit.recipes import Recipe

    class Fixed:
        def __len__(self) -> int:
            return 2

        def weights(self) -> list[float]:
            return [0.5, 0.5]

        def load_into(self, model: torch.nn.Module, number: int) -> None:
            pass

        def moments(self, number: int) -> AdamState:
            raise NotImplementedError("sgd needs none")

    torch.set_num_threads(1)
    model = add_lora(small_llama(), 8)
    assert trainable_parameters(model)
    lengths = np.random.default_rng(0).integers(8, 17, rows).tolist()
    encoded = random_rows(lengths, 2048)
    recipe = Recipe(dimension=DIMENSION, preconditioner="sgd", batch_tokens=2048)
    with tempfile.TemporaryDirectory() as folder, Watch() as watch:
        extract(model, Fixed(), encoded, Path(folder), recipe, provenance={})
    return watch.result()


def selection(rows: int) -> dict[str, float]:
    """TAGCOS, 5% of a store of `rows` × 2 checkpoints × 1024 float16, with a bound of 128 MB."""
    import numpy as np
    import pyarrow as pa
    import torch

    from pursuit.files import write_json
    from pursuit.selectors import Tagcos
    from pursuit.store.features import FeatureStore
    from pursuit.store.shard_files import write_shard

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = {"num_rows": rows, "weights": [0.5, 0.5], "shard_rows": 512, "provenance_digest": "x"}
        write_json(folder / "manifest.json", manifest)
        store = FeatureStore(folder)
        generator = np.random.default_rng(0)
        centres = generator.normal(size=(200, DIMENSION))
        for checkpoint in range(2):
            for shard in range(store.num_shards):
                count = len(store.shard_range(shard))
                rows_ = centres[generator.integers(0, 200, count)] + generator.normal(size=(count, DIMENSION))
                unit = rows_ / np.linalg.norm(rows_, axis=1, keepdims=True)
                tensors = {name: torch.ones(count) for name in ("norms", "gradient_norms", "losses")}
                tensors["features"] = torch.from_numpy(unit).half()
                write_shard(store.shard_path(checkpoint, shard), tensors, "x")
        features = store.features(pa.table({"source": pa.array(["x"] * rows).dictionary_encode()}))
        with Watch() as watch:
            chosen = Tagcos(memory_bytes=128 << 20).select(features, rows // 20)
        assert len(chosen) == rows // 20
        return watch.result()


def main() -> None:
    """Run every case in its own process, or one case inside such a process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["extraction", "selection"])
    parser.add_argument("--rows", type=int)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps({"extraction": extraction, "selection": selection}[arguments.case](arguments.rows)))
        return
    for case in ("extraction", "selection"):
        grown = []
        for rows in SIZES if case == "extraction" else [10 * size for size in SIZES]:
            command = [sys.executable, "-m", "benchmarks.memory", "--case", case, "--rows", str(rows)]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            found = json.loads(answer)
            grown.append(found["peak"] - found["before"])
            print(f"{case:10} {rows:8,} rows: {found['before']:7.0f} MB before, + {grown[-1]:6.0f} MB, "
                  f"{found['seconds']:6.1f} s")  # fmt: skip
        print(f"{case:10} ten times the rows: {grown[1] / max(grown[0], 1):.2f} × the added memory")


if __name__ == "__main__":
    main()
