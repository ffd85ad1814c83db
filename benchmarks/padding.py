"""How much of what goes through the model is padding, by how rows are put into batches.

    python -m benchmarks.padding --model FOLDER --pool POOL.jsonl [POOL.jsonl …]

The share of padding among all tokens, and how full a batch is on average, by the budget of padded tokens (1,024, 2,048,
8,192, 16,384 and 65,536); and the time to cut the batches. "random": rows in order, as many as fit a budget on average,
as a data loader makes them. "filled": sorted by length within 512 rows, every batch filled to its budget. "planned": as
`plan_batches` cuts them, within shards of so many rows (extraction takes 2,048 to 8,192, by the pool). Nothing is
run through a model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pursuit.batches import plan_batches
from pursuit.encoding import Encoder, encode_pool
from pursuit.models.loading import load_tokenizer
from pursuit.pool import Pool

BUDGETS = (1024, 2048, 8192, 16384, 65536)
SIZES = (512, 2048, 8192)
Way = Callable[[list[int], NDArray[np.int32], int], list[list[int]]]


def shards(rows: int, size: int) -> list[list[int]]:
    """As extraction cuts them."""
    return [list(range(begin, min(rows, begin + size))) for begin in range(0, rows, size)]


def random(rows: list[int], lengths: NDArray[np.int32], budget: int) -> list[list[int]]:
    """As many rows a batch as fit on average."""
    size = max(1, int(budget // lengths.mean()))
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def filled(rows: list[int], lengths: NDArray[np.int32], budget: int) -> list[list[int]]:
    """Longest first, each batch as full as it can be."""
    batches: list[list[int]] = []
    for row in sorted(rows, key=lambda row: (-int(lengths[row]), row)):
        if batches and (len(batches[-1]) + 1) * int(lengths[batches[-1][0]]) <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="whose tokenizer counts")
    parser.add_argument("--pool", required=True, nargs="+")
    asked = parser.parse_args()
    for pool in asked.pool:
        with tempfile.TemporaryDirectory() as folder:
            encoder = Encoder(load_tokenizer(asked.model), chat_template="chatml")
            lengths = encode_pool(Pool([pool], on_bad_row="skip"), encoder, Path(folder) / "encoded").lengths
        print(f"{pool}: {len(lengths):,} rows of {lengths.min()} to {lengths.max()} tokens, mean {lengths.mean():.0f}")
        for name, way, size in WAYS:
            start = time.perf_counter()
            line = f"  {name:15}" + "".join(f"{_cell(way, size, lengths, budget):>18}" for budget in BUDGETS)
            print(f"{line}  {1e6 * (time.perf_counter() - start) / len(BUDGETS) / len(lengths):3.0f} us a row")


def _cell(way: Way, size: int, lengths: NDArray[np.int32], budget: int) -> str:
    batches = [batch for shard in shards(len(lengths), size) for batch in way(shard, lengths, budget)]
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return f"{1 - lengths.sum() / padded:5.1%}, {padded / len(batches) / budget:3.0%} full"


WAYS: tuple[tuple[str, Way, int], ...] = (
    ("random", random, 512), ("filled", filled, 512),
    *((f"planned, {size:,}", plan_batches, size) for size in SIZES),
)  # fmt: skip


if __name__ == "__main__":
    main()
