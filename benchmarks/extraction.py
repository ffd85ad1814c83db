"""Extraction against the plain work it stands on: forward + backward of the same batches with every weight frozen.

    python -m benchmarks.extraction [--model FOLDER] [--threads 1] [--rounds 5] [--ranks 8 128]

For each case the plain pass, our capture alone, and capture + preconditioning + projection run in turn (A B C A B C …)
on the same batches; the table gives rows a CPU-second and the ratio to the plain pass, median over the rounds with its
range. CPU time is counted because other work on the machine disturbs it less than wall time. Without a model
folder only the small Llama (hidden 256, 4 layers, vocabulary 2048, 128 tokens a row) is measured.
Dense Rademacher in the manner of TRAK and LESS is timed on one row beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pursuit.batches import collate, plan_batches
from pursuit.gradients import (
    AdamState,
    Preconditioning,
    batch_gradients,
    example_losses,
    make_projection,
    trainable_parameters,
)
from pursuit.gradients.extract import batch_features


class RandomRows:
    """Rows of random tokens, the second half of each being the response."""

    def __init__(self, lengths: list[int], vocabulary: int, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.lengths = np.asarray(lengths, dtype=np.int32)
        self.ids = [generator.integers(3, vocabulary, length, dtype=np.int32) for length in lengths]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[index], np.arange(len(self.ids[index])) >= len(self.ids[index]) // 2


def small_llama() -> nn.Module:
    """The model of the comparisons with other libraries: 3.2M weights in its linear layers."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=256, num_hidden_layers=4, intermediate_size=688, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=2048, max_position_embeddings=256, tie_word_embeddings=False, use_cache=False,
    )).eval()  # fmt: skip


def add_lora(model: nn.Module, rank: int) -> nn.Module:
    """LoRA on the attention projections, with B away from zero as after a warm-up."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    return model.eval()


def plain_pass(model: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    """Forward and backward with frozen weights: gradients flow to the embeddings' output and nothing is kept."""
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    handle = model.get_input_embeddings().register_forward_hook(lambda m, i, output: output.requires_grad_(True))
    example_losses(model, batch).sum().backward()
    handle.remove()
    for name, p in model.named_parameters():
        p.requires_grad_(flags[name])


def ignore(name: str, block: torch.Tensor) -> None:
    """Take a parameter's gradients and do nothing with them."""


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


def measure(label: str, model: nn.Module, rows: RandomRows, batch_tokens: int, rounds: int) -> None:
    """Print one block of the table."""
    parameters = trainable_parameters(model)
    size = sum(p.numel() for p in parameters.values())
    batches = plan_batches(range(len(rows)), rows.lengths, batch_tokens)
    device = next(model.parameters()).device
    tensors = [collate(rows, batch, device) for batch in batches]
    moments = {name: torch.rand(p.shape, device=device) * 1e-7 for name, p in parameters.items()}
    state = AdamState(moments, {name: value.square() for name, value in moments.items()}, step=10)

    def features(kind: str, dimension: int) -> Callable[[], None]:
        direction = Preconditioning(kind, state, device=device)  # type: ignore[arg-type]
        projection = make_projection("sparse", size, dimension, 0)
        return lambda: [batch_features(model, rows, b, projection, direction) for b in batches] and None

    seconds = in_turn({
        "plain forward + backward, frozen": lambda: [plain_pass(model, b) for b in tensors] and None,
        "per-example gradients": lambda: [batch_gradients(model, b, parameters, ignore) for b in tensors] and None,
        "  + sgd, d=1024": features("sgd", 1024), "  + sgd, d=8192": features("sgd", 8192),
        "  + adam, d=8192": features("adam", 8192),
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


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a causal LM with q,k,v,o projections, for example SmolLM2-135M")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 128])
    parser.add_argument("--device", default="cpu", help="cpu, or cuda where there is one (then seconds are wall time)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch-tokens", type=int, default=1024, help="padded tokens a batch of the large model")
    parser.add_argument("--rows", type=int, default=16, help="rows of the large model")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    place, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    print(
        f"torch {torch.__version__}, {place}, {arguments.threads} threads, {arguments.dtype}, {arguments.rounds} rounds"
    )

    def case(label: str, model: nn.Module, rows: RandomRows, batch_tokens: int) -> None:
        measure(label, model.to(place, dtype), rows, batch_tokens, arguments.rounds)

    for rank in arguments.ranks:
        case(f"small Llama, LoRA r={rank}", add_lora(small_llama(), rank), RandomRows([128] * 64, 2048), 2048)
    case("small Llama, all linear weights", only_linear(small_llama()), RandomRows([128] * 32, 2048), 2048)
    if arguments.model is None:
        return
    lengths = np.random.default_rng(1).integers(40, 200, arguments.rows).tolist()
    for rank in arguments.ranks:
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype)
        rows = RandomRows(lengths, model.config.vocab_size)
        case(f"{arguments.model}, LoRA r={rank}", add_lora(model, rank), rows, arguments.batch_tokens)


def only_linear(model: nn.Module) -> nn.Module:
    """Gradients of every projection in attention and MLP."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("proj" in name)
    return model


if __name__ == "__main__":
    main()
