"""Seconds by counting against seconds on the clock, and the same count for models and pools that are not at hand.

    python -m benchmarks.costs --model FOLDER [--rows 8]

The rate of one thread, operations a second, is measured on the small Llama with LoRA; with it the time of the model in
the folder is told beforehand, and then measured. The second table is computed, not measured.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.extraction import add_lora, only_linear
from benchmarks.peers.common import small_llama
from benchmarks.rows import KnownRows, random_rows
from pursuit.batches import plan_batches
from pursuit.gradients import Preconditioning
from pursuit.gradients.capture import ExampleGradients
from pursuit.gradients.extract import batch_features, projections
from pursuit.inspection.costs import Shape, shape_of
from pursuit.inspection.predict import PER_ROW, padded_tokens
from pursuit.recipes import ProjectionKind, Recipe
from pursuit.store.codecs import row_bytes

# body, head, layers, hidden, adapters of rank 128 on q, k, v, o: by the published configurations of Llama 3
LLAMA_8B = Shape(6_979_321_856, 525_336_576, 32, 4096, 109_051_904)
LLAMA_70B = Shape(68_451_041_280, 1_050_673_152, 80, 8192, 524_288_000)
TOKENS, LABELLED, CHECKPOINTS = 500, 250, 3  # a row; padding included
H100, SHARE, PRICE = 989e12, 0.4, 2.5  # bfloat16 peak, the share of it that is reached, dollars an hour: assumptions


def seconds(
    model: nn.Module, rows: KnownRows, kind: ProjectionKind = "sparse", rounds: int = 3
) -> tuple[float, float]:
    """CPU seconds of one pass (median), and its operations."""
    recipe = Recipe(projection=kind, preconditioner="sgd")
    sketch, projection = projections(model, recipe)
    direction, gradients = Preconditioning("sgd", None, sketch=sketch), ExampleGradients(model, sketch=sketch)
    batches = plan_batches(range(len(rows)), rows.lengths, 1024)
    found = []
    for _ in range(rounds + 1):
        start = time.process_time()
        for batch in batches:
            batch_features(gradients, rows, batch, projection, direction)
        found.append(time.process_time() - start)
    labelled = sum(int(rows[row][1][1:].sum()) for row in range(len(rows)))
    tokens = padded_tokens(rows.lengths, batches)
    operations = shape_of(model, sketch).operations(tokens, float(rows.lengths.mean()), labelled)
    return statistics.median(found[1:]), operations


def checked(folder: str, count: int) -> None:
    """Print predicted and measured seconds."""
    took, operations = seconds(add_lora(small_llama(), 8), random_rows([128] * 32, 2048))
    rate = operations / took
    print(f"small Llama, LoRA r=8: {rate / 1e9:.1f} G operations a CPU-second, with which:")
    lengths = np.random.default_rng(1).integers(40, 200, count).tolist()
    cases: list[tuple[str, nn.Module, KnownRows, ProjectionKind]] = [
        ("small Llama, all matrices", only_linear(small_llama()), random_rows([128] * 32, 2048), "sparse"),
        ("the same, tensorsketch", only_linear(small_llama()), random_rows([128] * 32, 2048), "tensorsketch"),
        ("the same, factored", only_linear(small_llama()), random_rows([128] * 32, 2048), "factored"),
    ]
    for rank in (8, 128):
        large = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        rows = random_rows(lengths, large.config.vocab_size)
        cases.append((f"{folder.rstrip('/').rpartition('/')[2]}, LoRA r={rank}", add_lora(large, rank), rows, "sparse"))
    for title, model, rows, kind in cases:
        took, operations = seconds(model, rows, kind)
        print(f"  {title:42} predicted {operations / rate:7.2f} s, measured {took:7.2f} s = "
              f"{took * rate / operations:.2f} × the prediction")  # fmt: skip


def computed() -> None:
    """Print what larger work would take."""
    print(f"\ncomputed: rows of {TOKENS} tokens, {LABELLED} labelled, {CHECKPOINTS} checkpoints, d=8192; an H100 at "
          f"{SHARE:.0%} of {H100 / 1e12:.0f} T operations a second, {PRICE} dollars an hour")  # fmt: skip
    for title, shape in (("8B", LLAMA_8B), ("70B", LLAMA_70B)):
        for rows in (10**5, 10**6, 10**7, 10**8):
            hours = CHECKPOINTS * rows * shape.operations(TOKENS, TOKENS, LABELLED) / (H100 * SHARE) / 3600
            stored = [rows * CHECKPOINTS * (row_bytes(kind, 8192) + PER_ROW) for kind in ("float16", "int8", "bits")]
            print(f"  {title:4} {rows:>12,} rows: {hours:>10,.0f} GPU-hours, {PRICE * hours:>10,.0f} dollars = "
                  f"{100 * PRICE * hours / rows:.3f} cents a row; store "
                  + ", ".join(f"{value / 1e9:,.0f}" for value in stored) + " GB (float16, int8, bits)")  # fmt: skip


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a causal LM with q,k,v,o projections; nothing measured if not given")
    parser.add_argument("--rows", type=int, default=8)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.model:
        checked(asked.model, asked.rows)
    computed()


if __name__ == "__main__":
    main()
