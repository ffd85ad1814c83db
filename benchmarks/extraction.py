"""Extraction against the plain work it stands on: forward + backward of the same batches with every weight frozen.

    python -m benchmarks run --parts extraction [--model FOLDER [--pool FILE]] [--rounds 5] [--ranks 8 128]

For each case the plain pass, our capture alone, and capture + preconditioning + projection run in turn (A B C A B C …)
on the same batches; the table gives rows a CPU-second and the ratio to the plain pass, median over the rounds with its
range. CPU time is counted because other work on the machine disturbs it less than wall time. Without a model
folder the small Llama (hidden 256, 4 layers, vocabulary 2048, 128 tokens a row) is measured.
Dense Rademacher in the manner of TRAK and LESS is timed on one row beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.peers.common import small_llama
from benchmarks.rows import KnownRows, random_rows
from pursuit.batches import collate, plan_batches
from pursuit.encoding import Encoder, encode_pool
from pursuit.gradients import (
    AdamState,
    Preconditioning,
    example_losses,
    make_projection,
    trainable_parameters,
)
from pursuit.gradients.capture import ExampleGradients
from pursuit.gradients.extract import batch_features, projections
from pursuit.gradients.split import split_model
from pursuit.models.loading import load_tokenizer
from pursuit.pool import Pool
from pursuit.recipes import Preconditioner, ProjectionKind, Recipe


def add_lora(model: nn.Module, rank: int) -> nn.Module:
    """LoRA on the attention projections, with B away from zero as after a warm-up."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    return model.eval()


class Plain:
    """Forward and backward with frozen weights: gradients flow to the embeddings' output and nothing is kept."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.split, self.learnt = model, split_model(model), list(trainable_parameters(model).values())
        self.embeddings: nn.Module = model.get_input_embeddings()  # type: ignore[operator]

    def __call__(self, batch: dict[str, torch.Tensor]) -> None:
        """One batch."""
        for parameter in self.learnt:
            parameter.requires_grad_(False)
        handle = self.embeddings.register_forward_hook(lambda m, i, output: output.requires_grad_(True))
        example_losses(self.model, batch, split=self.split).sum().backward()
        handle.remove()
        for parameter in self.learnt:
            parameter.requires_grad_(True)


def ignore(name: str, block: torch.Tensor) -> None:
    """Take a parameter's gradients and do nothing with them."""


def of_all(batches: Iterable[Any], way: Callable[[Any], object]) -> Callable[[], None]:
    """Go over all batches in one way."""

    def work() -> None:
        for batch in batches:
            way(batch)

    return work


def in_turn(ways: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, one after the other, `rounds` times after a warm-up round: CPU time, wall time on a GPU."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def measure(label: str, model: nn.Module, rows: KnownRows, batch_tokens: int, rounds: int) -> None:
    """Print one block of the table."""
    parameters = trainable_parameters(model)
    size = sum(p.numel() for p in parameters.values())
    batches = plan_batches(range(len(rows)), rows.lengths, batch_tokens)
    device = next(model.parameters()).device
    tensors = [collate(rows, batch, device) for batch in batches]
    moments = {name: torch.rand(p.shape, device=device) * 1e-7 for name, p in parameters.items()}
    state = AdamState(moments, {name: value.square() for name, value in moments.items()}, step=10)

    def features(
        kind: Preconditioner, dimension: int, how: ProjectionKind = "sparse"
    ) -> Callable[[], None]:
        recipe = Recipe(dimension=dimension, projection=how, preconditioner=kind)
        sketch, projection = projections(model, recipe)
        direction = Preconditioning(kind, state, device=device, sketch=sketch)
        gradients = ExampleGradients(model, sketch=direction.sketch)
        return of_all(batches, lambda batch: batch_features(gradients, rows, batch, projection, direction))

    gradients_alone = ExampleGradients(model)
    seconds = in_turn({
        "plain forward + backward, frozen": of_all(tensors, Plain(model)),
        "per-example gradients": of_all(
            tensors, lambda batch: gradients_alone(batch, ignore)
        ),
        "  + sgd, d=1024": features("sgd", 1024), "  + sgd, d=8192": features("sgd", 8192),
        "  + adam, d=1024": features("adam", 1024), "  + adam, d=8192": features("adam", 8192),
        "tensorsketch, sgd, d=8192": features("sgd", 8192, "tensorsketch"),
        "tensorsketch, adam, d=8192": features("adam", 8192, "tensorsketch"),
        "factored, sgd, d=8192": features("sgd", 8192, "factored"),
        "factored, adam, d=8192": features("adam", 8192, "factored"),
    }, rounds)  # fmt: skip
    base = seconds["plain forward + backward, frozen"]
    tokens = int(rows.lengths.sum())
    print(f"\n{label}: P = {size:,}, {len(rows)} rows, {tokens:,} tokens, {len(batches)} batches")
    for name, times in seconds.items():
        ratios = sorted(b / t for b, t in zip(base, times, strict=True))
        middle = statistics.median(ratios)
        print(f"  {name:36s} {len(rows) / statistics.median(times):8.2f} rows/CPU-s   {middle:5.2f} × plain "
              f"({ratios[0]:.2f}–{ratios[-1]:.2f})")  # fmt: skip
    dense_row(size, statistics.median(base) / len(rows))


def dense_row(size: int, plain_seconds: float, dimension: int = 8192, sample: int = 1 << 16) -> None:
    """Dense Rademacher of one row, timed on the first `sample` coordinates and scaled to all of them."""
    sample = min(sample, size)
    projection = make_projection("rademacher", sample, dimension, 0)
    row = torch.randn(1, sample)
    start = time.process_time()
    accumulator = projection.start(1, row.device)
    projection.add(accumulator, 0, row)
    seconds = (time.process_time() - start) * size / sample
    print(f"  dense Rademacher, batch 1, d={dimension}: {seconds:.1f} s a row = {seconds / plain_seconds:,.0f} × plain")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this part can be told."""
    parser.add_argument("--model", help="folder of a causal LM with q,k,v,o projections, for example SmolLM2-135M")
    parser.add_argument("--pool", help="JSONL file: rows as long as its first ones, instead of 40 to 200 tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 128, 0], help="of a LoRA; 0: all linear weights")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one (then seconds are wall time)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch-tokens", type=int, default=1024, help="padded tokens a batch of the large model")
    parser.add_argument("--model-rows", type=int, default=16, help="rows of the large model")


def run(arguments: argparse.Namespace) -> None:
    """Print the table."""
    torch.set_num_threads(arguments.threads)
    place, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    print(f"{place}, {arguments.threads} threads, {arguments.dtype}, {arguments.rounds} rounds")

    def case(label: str, model: nn.Module, rows: KnownRows, batch_tokens: int) -> None:
        measure(label, model.to(place, dtype), rows, batch_tokens, arguments.rounds)

    for rank in arguments.ranks:
        what = f"LoRA r={rank}" if rank else "all linear weights"
        if arguments.model is None:
            rows = random_rows([128] * (64 if rank else 32), 2048)
            case(f"small Llama, {what}", captured(small_llama(), rank), rows, 2048)
        else:
            model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype)
            rows = rows_for(arguments, model.config.vocab_size)
            case(f"{arguments.model}, {what}", captured(model, rank), rows, arguments.batch_tokens)


def captured(model: nn.Module, rank: int) -> nn.Module:
    """The model with what gradients are wanted of: a LoRA of that rank, or with 0 its own projections."""
    return add_lora(model, rank) if rank else only_linear(model)


def rows_for(arguments: argparse.Namespace, vocabulary: int) -> KnownRows:
    """Random tokens; lengths at random, or those of a pool's rows as the model's tokenizer makes them."""
    if arguments.pool is None:
        return random_rows(np.random.default_rng(1).integers(40, 200, arguments.model_rows).tolist(), vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        encoder = Encoder(load_tokenizer(arguments.model))
        encoded = encode_pool(Pool([arguments.pool], on_bad_row="skip"), encoder, Path(folder) / "encoded")
        return random_rows(encoded.lengths[: arguments.model_rows].tolist(), vocabulary)


def only_linear(model: nn.Module) -> nn.Module:
    """Gradients of every projection in attention and MLP."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("proj" in name)
    return model
