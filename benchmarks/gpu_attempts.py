"""What was tried to make a batch cheaper on a GPU: each way beside the one that extraction takes, in turn.

    python -m benchmarks.gpu_attempts [--model FOLDER] [--lengths FILE] [--case "LoRA r=128"] [--budget 16384]

Arguments are those of `benchmarks.gpu`; the times are of features (sgd, sparse) unless another pass is named. "first"
is the first pass over batches of shapes that were not seen before, as all of a real extraction are; the others are
medians of later rounds.

    no mask     of the padding, which stands behind what causal attention sees: torch then has other kernels to choose
    cuDNN, …    attention by one of torch's kernels alone
    any bits    kernels that need not give the same bits each time
    compiled    by torch.compile, the parts of each layer that are frozen: norms, and the MLP under a LoRA on attention;
                or whole layers, of which only the plain pass can be had
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.extraction import Plain
from benchmarks.gpu import CASES, Work, seconds
from pursuit.batches import collate
from pursuit.devices import deterministic
from pursuit.gradients import split

KERNELS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION,
           "efficient": SDPBackend.EFFICIENT_ATTENTION}  # fmt: skip


def main() -> None:
    """Print a line a way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--lengths", type=Path)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--case", default="LoRA r=128", choices=list(CASES))
    parser.add_argument("--budget", type=int, default=16384)
    parser.add_argument("--dimension", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    work = Work(asked)
    model = work.model(asked.case)
    batches = work.batches(asked.budget)
    print(f"{asked.case}, bfloat16, {len(work.rows)} rows in {len(batches)} batches of {asked.budget:,} tokens")
    ways = {**_ways(work, model, batches), **_compiled(work, batches)}
    firsts, later = _in_turn(ways, asked.rounds)
    base = statistics.median(later["as extraction does"])
    for name, times in later.items():
        took = statistics.median(times)
        print(f"  {name:42} {len(work.rows) / took:6.0f} rows/s ({len(work.rows) / max(times):.0f}–"
              f"{len(work.rows) / min(times):.0f})  {base / took:5.2f} ×   first {firsts[name]:.2f} s, "
              f"later {took:.2f} s", flush=True)  # fmt: skip


def _in_turn(
    ways: dict[str, Callable[[], object]], rounds: int
) -> tuple[dict[str, float], dict[str, list[float]]]:  # fmt: skip
    """Seconds of each way's first pass, and of the others; one that fails is named and left out."""
    firsts: dict[str, float] = {}
    for name, run in ways.items():
        try:
            firsts[name] = seconds(run)
        except Exception as error:  # whatever a kernel or compiler says
            print(f"  {name}: failed: {str(error).splitlines()[0][:200]}", flush=True)
    later: dict[str, list[float]] = {name: [] for name in firsts}
    for _ in range(rounds):
        for name in later:
            later[name].append(seconds(ways[name]))
    return firsts, later


def _ways(work: Work, model: nn.Module, batches: list[list[int]]) -> dict[str, Callable[[], object]]:
    features = work.features(model, "sgd", "sparse", work.asked.dimension)

    def over(*around: Callable[[], Any], strict: bool = True) -> Callable[[], object]:
        def run() -> None:
            with contextlib.ExitStack() as stack:
                for make in (*([lambda: deterministic(work.device)] if strict else []), *around):
                    stack.enter_context(make())
                for batch in batches:
                    features(batch)

        return run

    kernels = {name: over(partial(sdpa_kernel, kind)) for name, kind in KERNELS.items()}
    kernels |= {f"{name}, no mask": over(unmasked, partial(sdpa_kernel, kind)) for name, kind in KERNELS.items()}
    return {
        "as extraction does": over(), "no mask": over(unmasked), **kernels, "any bits": over(strict=False),
        "any bits, no mask": over(unmasked, strict=False), "forward + backward, frozen": _plain(work, model, batches),
        "forward + backward, frozen, no mask": _plain(work, model, batches, unmasked),
    }  # fmt: skip


def _compiled(work: Work, batches: list[list[int]]) -> dict[str, Callable[[], object]]:
    pieces, whole = work.model(work.asked.case), work.model(work.asked.case)
    for layer in (m for m in pieces.modules() if type(m).__name__.endswith("DecoderLayer")):
        for part in layer.children():
            if not any(p.requires_grad for p in part.parameters()):
                part.compile(dynamic=True)
    for layer in (m for m in whole.modules() if type(m).__name__.endswith("DecoderLayer")):
        layer.compile(dynamic=True)
    features = work.features(pieces, "sgd", "sparse", work.asked.dimension)

    def by_pieces() -> None:
        with deterministic(work.device):
            for batch in batches:
                features(batch)

    return {
        "frozen parts compiled": by_pieces,
        "forward + backward, frozen, parts compiled": _plain(work, pieces, batches),
        "forward + backward, frozen, layers compiled": _plain(work, whole, batches),
    }


def _plain(
    work: Work, model: Any, batches: list[list[int]], around: Callable[[], Any] = contextlib.nullcontext
) -> Callable[[], None]:
    plain = Plain(model)

    def run() -> None:
        with around():
            for batch in batches:
                plain(collate(work.rows, batch, work.device))

    return run


@contextlib.contextmanager
def unmasked() -> Iterator[None]:
    """As if no row were padded."""
    real = split.forward_inputs

    def inputs(module: nn.Module, batch: Mapping[str, Tensor], accepted: set[str] | None = None) -> dict[str, Any]:
        return real(module, {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}, accepted)

    with mock.patch.object(split, "forward_inputs", inputs):
        yield


if __name__ == "__main__":
    main()
