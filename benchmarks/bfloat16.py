"""What a model in bfloat16 does to gradients, and what rotary positions in bfloat16 would do beside.

    python -m benchmarks.bfloat16 --model SMOLLM2 --pool POOL --target TARGET --out FOLDER [--rows 60] [--longest 512]

One warm-up in float32, a LoRA of rank 16, and its checkpoint's gradients (plain, d = 8,192) of the first rows of a pool
and of a target: in float32; in bfloat16 as extraction computes, which leaves the rotary frequencies in float32 as
transformers loads them; and with these frequencies in bfloat16 too. Of each beside float32: cosine of a row with itself
by thirds of the rows' lengths, rank correlation of the rows' inner products, and the share of LESS' choice of a tenth
that comes back.
"""

from __future__ import annotations

import argparse
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from pursuit import Run
from pursuit.batches import plan_batches
from pursuit.files import write_text
from pursuit.gradients import Preconditioning, trainable_parameters
from pursuit.gradients.capture import ExampleGradients
from pursuit.gradients.extract import batch_features, projections
from pursuit.recipes import Recipe

RECIPE = Recipe(dimension=8192, preconditioner="sgd", batch_tokens=1024)
WAYS = ("float32", "bfloat16", "bfloat16, positions too")


def main() -> None:
    """Print a line a way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "pool", "target", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--longest", type=int, default=512)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    run = _run(asked)
    trajectory = run.warmup()
    model = run.model
    trajectory.load_into(model, len(trajectory) - 1)
    pool, target = run.stages.tokens.parts()[0], run.stages.encode_target()[0]
    print(f"{len(pool)} rows of {pool.lengths.min()} to {pool.lengths.max()} tokens, {len(target)} of the target")
    trained = {name: p.data.clone() for name, p in trainable_parameters(model).items()}
    exact: tuple[np.ndarray, np.ndarray] | None = None
    for way in WAYS:
        _in(way, model, trained)
        found = _features(model, pool), _features(model, target)
        exact = exact or found
        print(f"{way:24}  {_likeness(exact, found, pool.lengths)}", flush=True)


def _run(asked: argparse.Namespace) -> Run:
    asked.out.mkdir(parents=True, exist_ok=True)
    first = asked.out / f"first-{asked.rows}.jsonl"
    with open(asked.pool, encoding="utf-8") as lines:
        write_text(first, "".join(islice(lines, asked.rows)))
    goal = asked.out / f"target-{asked.rows // 3}.jsonl"
    with open(asked.target, encoding="utf-8") as lines:
        write_text(goal, "".join(islice(lines, asked.rows // 3)))
    return Run(
        asked.out / "run", model=asked.model, pool=first, target=goal, device="cpu", dtype="float32",
        max_length=asked.longest, chat_template="chatml", lora={"rank": 16, "alpha": 64}, on_bad_row="skip",
        warmup={"checkpoint_steps": [6], "epochs": 1, "sample": 48, "learning_rate": 1e-3, "batch_size": 8,
                "micro_batch_tokens": 1024},
    )  # fmt: skip


def _in(way: str, model: nn.Module, trained: dict[str, torch.Tensor]) -> None:
    """The model's numbers in this way's types; each is coarser than the one before it."""
    dtype = torch.float32 if way == "float32" else torch.bfloat16
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for name, parameter in trainable_parameters(model).items():
        parameter.data = trained[name].to(dtype)
    if way == WAYS[2]:
        for buffer in model.buffers():
            buffer.data = buffer.data.to(dtype)


def _features(model: nn.Module, encoded: Any) -> np.ndarray:
    gradients, (_, projection) = ExampleGradients(model), projections(model, RECIPE)
    found = np.empty((len(encoded), RECIPE.dimension))
    for rows in plan_batches(range(len(encoded)), encoded.lengths, RECIPE.batch_tokens):
        found[rows] = batch_features(gradients, encoded, rows, projection, Preconditioning("sgd", None))["features"]
    return found


def _likeness(
    exact: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray], lengths: np.ndarray
) -> str:
    cosines = (exact[0] * found[0]).sum(axis=1)
    thirds = np.array_split(np.argsort(lengths, kind="stable"), 3)
    by_length = "  ".join(f"{lengths[part].mean():.0f} tokens {cosines[part].mean():.4f}" for part in thirds)
    upper = np.triu_indices(len(lengths), 1)
    rank = spearmanr(*((rows @ rows.T)[upper] for rows, _ in (exact, found))).statistic
    best = [set(np.argsort(-(rows @ goal.mean(axis=0)))[: len(rows) // 10].tolist()) for rows, goal in (exact, found)]
    kept = len(best[0] & best[1]) / len(best[0])
    return f"cosines: {by_length}   rank {rank:.4f}   LESS keeps {kept:.2f}"


if __name__ == "__main__":
    main()
