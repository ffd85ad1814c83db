"""What only a GPU can show, in one call: rates and shares of its peak, padding, bfloat16, the published way.

    python -m benchmarks.gpu [--model FOLDER] [--lengths FILE] [--parts peaks extraction loop precision profile]

Without a model folder: the architecture of SmolLM2-135M with random weights. Lengths: a JSON file of [tokens, place of
the first that is learnt] for each row, as `benchmarks.beside.pool_lengths` writes it of a pool; the tokens are random.
Times are of the clock, medians over the rounds; all parts of a table run in turn.

peaks       a matrix product in bfloat16 and a copy on the device: what the rest is compared with
extraction  rows a second by batch budget, beside forward + backward with frozen weights, and operations by counting
            (`pursuit.inspection.costs`) as a share of the product's rate; padding's cost: batches in order of the rows
loop        one row at a time, the whole gradient, then dense random signs drawn on the GPU for 16 rows at once
precision   features of bfloat16 beside those of float32: cosines row by row, rank correlation of inner products
profile     where the time of a batch goes
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.extraction import Plain, captured, ignore
from benchmarks.rows import KnownRows
from pursuit.batches import collate, plan_batches
from pursuit.gradients import AdamState, Preconditioning, example_losses, trainable_parameters
from pursuit.gradients.capture import ExampleGradients
from pursuit.gradients.extract import batch_features, projections
from pursuit.inspection.costs import shape_of
from pursuit.recipes import Preconditioner, ProjectionKind, Recipe

CASES = {"LoRA r=8": 8, "LoRA r=128": 128, "all linear weights": 0}
PARTS = ("peaks", "extraction", "loop", "precision", "profile")
TOGETHER = 16  # rows that the published way projects at once
SAMPLE = 1 << 22  # coordinates for which dense signs are timed; more are counted by their share
SIGNS_AT_ONCE = 1 << 27  # of the dense matrix: 512 MiB in float32


def main() -> None:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a causal LM with q,k,v,o projections")
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--rows", type=int, default=384)
    parser.add_argument("--budgets", type=int, nargs="+", default=[4096, 32768])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--dimension", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    work = Work(asked)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{name}, torch {torch.__version__}; {len(work.rows):,} rows, {work.rows.lengths.sum():,} tokens, "
          f"{work.learnt / work.rows.lengths.sum():.0%} learnt")  # fmt: skip
    ways = {"peaks": peaks, "extraction": extraction, "loop": loop, "precision": precision, "profile": profile}
    for part in asked.parts:
        try:
            ways[part](work)
        except torch.OutOfMemoryError as error:
            print(f"{part}: {error}")


class Work:
    """The rows, and models by case."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.device = asked, torch.device(asked.device)
        sizes = json.loads(asked.lengths.read_text())[: asked.rows] if asked.lengths else _sizes(asked.rows)
        generator = np.random.default_rng(0)
        tokens = [generator.integers(3, 49152, n).tolist() for n, _ in sizes]
        self.rows = KnownRows(tokens, [begin for _, begin in sizes])
        self.learnt = sum(n - begin for n, begin in sizes)
        self.rate = 0.0  # operations a second of a matrix product

    def model(self, case: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
        """With what gradients are wanted of."""
        torch.manual_seed(0)
        with self.device:
            if self.asked.model:
                model: Any = AutoModelForCausalLM.from_pretrained(self.asked.model, dtype=dtype)
            else:
                model = LlamaForCausalLM(LlamaConfig(
                    hidden_size=576, num_hidden_layers=30, intermediate_size=1536, num_attention_heads=9,
                    num_key_value_heads=3, vocab_size=49152, max_position_embeddings=2048, tie_word_embeddings=True,
                ))  # fmt: skip
        found: nn.Module = captured(model, CASES[case]).to(self.device).eval()
        for parameter in found.parameters():  # not the buffers: rotary positions are float32 in every model
            parameter.data = parameter.data.to(dtype)
        return found

    def batches(self, budget: int) -> list[list[int]]:
        """As extraction plans them."""
        return plan_batches(range(len(self.rows)), self.rows.lengths, budget)

    def features(self, model: nn.Module, kind: Preconditioner, how: ProjectionKind, dimension: int) -> Any:
        """rows → what extraction makes of them."""
        state = None
        if kind == "adam":
            shapes = {name: p.shape for name, p in trainable_parameters(model).items()}
            moments = {name: torch.rand(shape, device=self.device) * 1e-7 for name, shape in shapes.items()}
            state = AdamState(moments, {n: value.square() for n, value in moments.items()}, step=10)
        sketch, projection = projections(model, Recipe(dimension=dimension, projection=how, preconditioner=kind))
        direction = Preconditioning(kind, state, momentum=False, device=self.device, sketch=sketch)
        gradients = ExampleGradients(model, sketch=direction.sketch)
        return lambda batch: batch_features(gradients, self.rows, batch, projection, direction)["features"]


def _sizes(rows: int) -> list[tuple[int, int]]:
    lengths = np.random.default_rng(1).integers(30, 400, rows).tolist()
    return [(length, length // 2) for length in lengths]


def seconds(work: Callable[[], object]) -> float:
    """Of the clock, until the device is done."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peaks(work: Work) -> None:
    """Matrix product and copy."""
    size = 8192 if work.device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=work.device, dtype=torch.bfloat16) for _ in range(2))
    times = [seconds(lambda: [a @ b for _ in range(10)]) for _ in range(4)][1:]
    work.rate = 20 * size**3 / statistics.median(times)
    big = torch.randn(size * size * 8, device=work.device)
    other = torch.empty_like(big)
    copies = [seconds(lambda: [other.copy_(big) for _ in range(10)]) for _ in range(4)][1:]
    print(f"\npeaks: bfloat16 product {work.rate / 1e12:.0f} T operations/s, copy "
          f"{20 * big.nbytes / statistics.median(copies) / 1e12:.2f} TB/s")  # fmt: skip


def extraction(work: Work) -> None:
    """Rates by case and budget."""
    d = work.asked.dimension
    for case in work.asked.cases:
        model = work.model(case)
        parameters = trainable_parameters(model)
        print(f"\nextraction, {case}: P = {sum(p.numel() for p in parameters.values()):,}, bfloat16")
        kinds: list[tuple[Preconditioner, ProjectionKind, int]] = [
            ("sgd", "sparse", 1024), ("sgd", "sparse", d), ("adam", "sparse", d),
        ]  # fmt: skip
        if not CASES[case]:
            kinds += [("sgd", "tensorsketch", d), ("adam", "tensorsketch", d), ("sgd", "factored", d)]
        ways = {f"{kind}, {how}, d={n}": work.features(model, kind, how, n) for kind, how, n in kinds}
        for budget in work.asked.budgets:
            _rates(work, model, ways, work.batches(budget), f"budget {budget:,}")
        size = max(1, int(work.asked.budgets[-1] // (2 * work.rows.lengths.mean())))
        order = list(range(len(work.rows)))
        loader = [order[begin : begin + size] for begin in range(0, len(order), size)]
        _rates(work, model, {name: ways[name] for name in list(ways)[1:2]}, loader, f"batches of {size} in order")
        del model, ways
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _rates(work: Work, model: nn.Module, ways: dict[str, Any], batches: list[list[int]], title: str) -> None:
    plain, gradients = Plain(model), ExampleGradients(model)

    def over(way: Callable[[list[int]], object]) -> Callable[[], None]:
        def run() -> None:
            for batch in batches:
                way(batch)

        return run

    def put(batch: list[int]) -> dict[str, Tensor]:
        return collate(work.rows, batch, work.device)

    todo = {
        "forward + backward, frozen": over(lambda batch: plain(put(batch))),
        "per-example gradients": over(lambda batch: gradients(put(batch), ignore)),
        **{name: over(way) for name, way in ways.items()},
    }
    found: dict[str, list[float]] = {name: [] for name in todo}
    memory = {}
    for turn in range(work.asked.rounds + 1):
        for name, run in todo.items():
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            took = seconds(run)
            memory[name] = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
            if turn:
                found[name].append(took)
    padded = sum(len(batch) * int(work.rows.lengths[batch].max()) for batch in batches)
    operations = shape_of(model).operations(padded, float(work.rows.lengths.mean()), work.learnt)
    print(f"  {title}: {len(batches)} batches, {1 - work.rows.lengths.sum() / padded:.1%} padding")
    base = statistics.median(found["forward + backward, frozen"])
    for name, times in found.items():
        took = statistics.median(times)
        share = f", {operations / took / work.rate:5.1%} of the product's rate" if work.rate else ""
        print(f"    {name:28} {len(work.rows) / took:8.0f} rows/s ({len(work.rows) / max(times):.0f}–"
              f"{len(work.rows) / min(times):.0f})  {base / took:5.2f} × frozen  {memory[name]:5.1f} GiB{share}",
              flush=True)  # fmt: skip


def loop(work: Work) -> None:
    """The published way: LESS' and TAGCOS' code takes one row at a time and projects some at once."""
    for case in work.asked.cases:
        model = work.model(case)
        weights = list(trainable_parameters(model).values())
        block = torch.stack([_gradient(work, model, weights, row) for row in range(TOGETHER)])
        alone = seconds(lambda: [_gradient(work, model, weights, row) for row in range(TOGETHER)])  # noqa: B023
        block, scale = block[:, :SAMPLE], max(1.0, block.shape[1] / SAMPLE)
        _dense(block[:, :1024], work.asked.dimension)
        projecting = scale * seconds(lambda: _dense(block, work.asked.dimension))  # noqa: B023
        each = (alone + projecting) / TOGETHER
        how: ProjectionKind = "sparse" if CASES[case] else "tensorsketch"
        ours, batches = work.features(model, "sgd", how, work.asked.dimension), work.batches(work.asked.budgets[-1])
        times = [seconds(lambda: [ours(batch) for batch in batches]) for _ in range(3)][1:]  # noqa: B023
        mine = statistics.median(times) / len(work.rows)
        print(f"\nloop, {case}: a row's gradient {1e3 * alone / TOGETHER:.1f} ms, its dense signs to "
              f"{work.asked.dimension:,} {1e3 * projecting / TOGETHER:.1f} ms: {1 / each:.1f} rows/s; pursuit ({how}) "
              f"{1 / mine:.0f} rows/s = {each / mine:.1f} × (without the projection "
              f"{alone / TOGETHER / mine:.1f} ×)", flush=True)  # fmt: skip


def _gradient(work: Work, model: nn.Module, weights: list[nn.Parameter], row: int) -> Tensor:
    loss = example_losses(model, collate(work.rows, [row], work.device))[0]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]).float()


def _dense(block: Tensor, dimension: int) -> Tensor:
    """(B, P) by dense signs, drawn where the block is, some of them at once as TRAK does."""
    generator = torch.Generator(block.device)
    out = torch.zeros(len(block), dimension, device=block.device)
    for number, part in enumerate(block.split(SIGNS_AT_ONCE // dimension, dim=1)):
        generator.manual_seed(number)
        signs = torch.empty(part.shape[1], dimension, device=block.device)
        out += part @ signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    return out / dimension**0.5


def precision(work: Work) -> None:
    """Features of the two types."""
    some = list(range(min(128, len(work.rows))))
    for case in work.asked.cases[:2]:
        found = {}
        for dtype in (torch.float32, torch.bfloat16):
            torch.backends.cuda.matmul.allow_tf32 = False
            model = work.model(case, dtype)
            if dtype == torch.float32:
                model = work.model(case).float()  # the same weights, rounded
            features = work.features(model, "sgd", "sparse", work.asked.dimension)
            found[dtype] = torch.cat([features(some[i : i + 16]) for i in range(0, len(some), 16)]).double()
        full, half = found[torch.float32], found[torch.bfloat16]
        cosines = (full * half).sum(dim=1)
        upper = np.triu_indices(len(some), 1)
        rank = spearmanr((full @ full.T).numpy()[upper], (half @ half.T).numpy()[upper]).statistic
        print(f"\nprecision, {case}: cosine of a row in bfloat16 with itself in float32 {cosines.mean():.4f} (least "
              f"{cosines.min():.4f}), rank correlation of inner products {rank:.4f}", flush=True)  # fmt: skip


def profile(work: Work) -> None:
    """Kernels and calls of one batch of the largest budget."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recording

    model = work.model("LoRA r=128")
    features = work.features(model, "adam", "sparse", work.asked.dimension)
    batch = work.batches(work.asked.budgets[-1])[0]
    features(batch)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with recording(activities=kinds) as record:
        took = seconds(lambda: features(batch))
    print(f"\nprofile, LoRA r=128, adam, one batch of {len(batch)} rows: {1e3 * took:.0f} ms with the profiler on")
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(record.key_averages().table(sort_by=key, row_limit=14, max_name_column_width=44))


if __name__ == "__main__":
    main()
