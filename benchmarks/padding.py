"""How much of what goes through the model is padding, by how rows are put into batches.

    python -m benchmarks.padding --model FOLDER --pool POOL.jsonl [POOL.jsonl …]

Shards of 512 rows, as extraction takes them, and budgets of padded tokens. "random": rows in order, as many as fit a
budget on average, as a data loader makes them. "filled": sorted by length, every batch filled to its budget. "planned":
as `plan_batches` cuts them. Nothing is run through a model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pursuit.batches import plan_batches
from pursuit.encoding import Encoder, encode_pool
from pursuit.models.loading import load_tokenizer
from pursuit.pool import Pool
from pursuit.recipes import Recipe

BUDGETS = (1024, 2048, 8192, 16384)


def shards(rows: int) -> list[list[int]]:
    """As extraction cuts them."""
    size = Recipe.shard_rows
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
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="whose tokenizer counts")
    parser.add_argument("--pool", required=True, nargs="+")
    asked = parser.parse_args()
    for pool in asked.pool:
        with tempfile.TemporaryDirectory() as folder:
            encoder = Encoder(load_tokenizer(asked.model), chat_template="chatml")
            lengths = encode_pool(Pool([pool], on_bad_row="skip"), encoder, Path(folder) / "encoded").lengths
        print(f"{pool}: {len(lengths):,} rows of {lengths.min()} to {lengths.max()} tokens, mean {lengths.mean():.0f}")
        for budget in BUDGETS:
            line = f"  budget {budget:6,}"
            for way in (random, filled, plan_batches):
                start = time.perf_counter()
                batches = [batch for shard in shards(len(lengths)) for batch in way(shard, lengths, budget)]
                spent = (time.perf_counter() - start) / len(shards(len(lengths))) * 1000
                padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
                name = "planned" if way is plan_batches else way.__name__
                line += f"   {name} {1 - lengths.sum() / padded:5.1%} in {len(batches):4}"
            print(f"{line}   ({spent:.0f} ms a shard to plan)")


if __name__ == "__main__":
    main()
