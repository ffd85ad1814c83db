"""What a batch costs whatever is in it: the calls. On a GPU a small model waits for them.

    python -m benchmarks.calls [--rank 8] [--profile]

A Llama of 30 layers, so narrow that a batch of two rows is next to no arithmetic, on the CPU: milliseconds of the
frozen pass, of the gradients alone (also with products put off, as on a GPU) and of the features, medians and means of
40 in turn. The mean also has what Python's garbage collector takes now and then; extraction keeps it from old objects,
and so does this without --collect.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.extraction import Plain, captured, ignore
from benchmarks.rows import KnownRows
from pursuit.batches import collate
from pursuit.gradients import Preconditioning
from pursuit.gradients.capture import ExampleGradients
from pursuit.gradients.extract import batch_features, projections
from pursuit.gradients.products import PUT_OFF
from pursuit.gradients.shards import old_objects_left_alone
from pursuit.recipes import Recipe

ROUNDS = 40


def main() -> None:
    """Print a line a pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=8, help="of a LoRA on attention; 0: all linear weights, factored")
    parser.add_argument("--collect", action="store_true", help="let old objects be looked through for garbage")
    parser.add_argument("--profile", action="store_true", help="also show where the time of the features goes")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    ways = passes(asked.rank)
    with contextlib.nullcontext() if asked.collect else old_objects_left_alone():
        took: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(ROUNDS + 2):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if turn > 1:
                    took[name].append(1e3 * (time.perf_counter() - start))
        profile = cProfile.Profile()
        for _ in range(ROUNDS if asked.profile else 0):
            profile.runcall(ways["features"])
    for name, times in took.items():
        print(f"{name:28} median {statistics.median(times):6.1f} ms   mean {statistics.mean(times):6.1f}   "
              f"most {max(times):6.1f}")  # fmt: skip
    if asked.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


def passes(rank: int) -> dict[str, Callable[[], object]]:
    """All of them, of one batch."""
    torch.manual_seed(0)
    model = captured(LlamaForCausalLM(LlamaConfig(
        hidden_size=48, num_hidden_layers=30, intermediate_size=64, num_attention_heads=3, num_key_value_heads=1,
        vocab_size=64, max_position_embeddings=64, tie_word_embeddings=True,
    )), rank).eval()  # fmt: skip
    rows = KnownRows([[5, 6, 7, 8, 9, 10]] * 2, [2] * 2)
    recipe = Recipe(dimension=1024, projection="sparse" if rank else "factored", preconditioner="sgd")
    sketch, projection = projections(model, recipe)
    plain, gradients = Plain(model), ExampleGradients(model, sketch=sketch)
    together = ExampleGradients(model, sketch=sketch, put_off=PUT_OFF)
    direction, batch = Preconditioning("sgd", None, sketch=sketch), collate(rows, [0, 1])
    return {
        "forward + backward, frozen": lambda: plain(batch), "gradients": lambda: gradients(batch, ignore),
        "gradients as on a GPU": lambda: together(batch, ignore),
        "features": lambda: batch_features(gradients, rows, [0, 1], projection, direction),
    }  # fmt: skip


if __name__ == "__main__":
    main()
