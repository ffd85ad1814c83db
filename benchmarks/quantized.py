"""Gradients of a model whose frozen weights are held in 4 bits: are the rows' likenesses and the choices the same?

    python -m benchmarks.quantized --model SMOLLM2 --pool POOL --target TARGET --out FOLDER [--rows 200] [--device cuda]

Three runs on the first rows of a pool, LoRA of rank 16 on all attention projections, one checkpoint: the model as it
is, the same in 4 bits (`--load-in-4bit`), and as it is with another seed of the warm-up, by which a choice may change
anyway. Of each: the room of the loaded weights, rows a second (of the CPU; on a GPU of the clock, and all is in
bfloat16), rank correlation of the rows' inner products with those of the first run, and the share of each method's
choice (a tenth of the rows) that comes back.
"""

from __future__ import annotations

import argparse
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from pursuit import Run
from pursuit.compare.plan import parse_method
from pursuit.files import write_text
from pursuit.inspection.memory import weight_bytes
from pursuit.selectors import method

METHODS = ("less", "gtp", "rds", "gradnorm", "tagcos(clusters=10)")
SETTINGS: dict[str, Any] = {
    "max_length": 256, "chat_template": "chatml",
    "lora": {"rank": 16, "alpha": 64},
    "features": {"dimension": 8192, "dtype": "float32", "batch_tokens": 512, "shard_rows": 64},
}  # fmt: skip
WARMUP = {"checkpoint_steps": [12], "epochs": 1, "sample": 96, "learning_rate": 1e-3, "batch_size": 8,
          "micro_batch_tokens": 512}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "as it is": {"warmup": WARMUP},
    "in 4 bits": {"warmup": WARMUP, "load_in_4bit": True},
    "as it is, another warm-up": {"warmup": WARMUP | {"seed": 1}},
}


def main() -> None:
    """Print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "pool", "target", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # the methods' warnings about the pool
    asked.out.mkdir(parents=True, exist_ok=True)
    pool = asked.out / f"first-{asked.rows}.jsonl"
    with open(asked.pool, encoding="utf-8") as lines:
        write_text(pool, "".join(islice(lines, asked.rows)))
    cuda, exact = asked.device != "cpu", None
    where: dict[str, Any] = {"on_bad_row": "skip", "device": asked.device, "dtype": "bfloat16" if cuda else "float32"}
    if cuda:
        where["features"] = SETTINGS["features"] | {"batch_tokens": 8192, "shard_rows": 2048}
    clock = time.perf_counter if cuda else time.process_time
    for name, changes in KINDS.items():
        run = Run(
            asked.out / name.replace(" ", "-").replace(",", ""), model=asked.model, pool=pool, target=asked.target,
            **SETTINGS | where | changes,
        )  # fmt: skip
        run.warmup()
        began = clock()
        rows = run.extract().num_rows
        seconds = clock() - began
        exact = exact or run
        room = weight_bytes(run.model) / 2**20
        speed = f"{rows / seconds:5.2f} rows/{'s' if cuda else 'CPU-s'}"
        print(f"{name:26}  {room:5.0f} MiB   {speed}   {_likeness(exact, run)}", flush=True)


def _likeness(exact: Run, run: Run) -> str:
    alike, other = (_inner_products(one) for one in (exact, run))
    kept = [f"{text.partition('(')[0]} {_shared(text, exact, run):.2f}" for text in METHODS]
    return f"rank {spearmanr(alike, other).statistic:.4f}   kept: {'  '.join(kept)}"


def _inner_products(run: Run) -> np.ndarray:
    features = run.extract()
    rows = np.asarray(features.checkpoint(0)[:], dtype=np.float64)
    return (rows @ rows.T)[np.triu_indices(len(rows), 1)]


def _shared(text: str, exact: Run, run: Run) -> float:
    name, parameters = parse_method(text)
    ours, theirs = (
        set(one.select(method(name, **parameters), budget="10%").selection.indices.tolist()) for one in (exact, run)
    )
    return len(ours & theirs) / len(ours)


if __name__ == "__main__":
    main()
