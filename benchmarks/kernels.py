"""The inner loops of extraction, one against another: ways to lay out a sparse projection, and Adam's direction.

    python -m benchmarks.kernels          # about a minute; nanoseconds of CPU time a coordinate, one thread

The layouts that lost are kept here only, so that the choice can be checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from pursuit.gradients import AdamState, Preconditioning
from pursuit.gradients.project import SparseProjection

EXAMPLES, COORDINATES = 16, 1_000_000


def nanoseconds(work: Callable[[], object], coordinates: int, repeats: int = 5) -> float:
    """CPU time of one call a coordinate, after a call that is not counted."""
    work()
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats / coordinates * 1e9


def layouts(dimension: int) -> dict[str, Callable[[], Tensor]]:
    """Each projects the same (16, 1,000,000) block."""
    block = torch.randn(EXAMPLES, COORDINATES)
    signs = torch.randint(0, 2, (COORDINATES,)).float() * 2 - 1
    buckets = torch.randint(0, dimension, (COORDINATES,))
    chunks = COORDINATES // dimension
    shifts = torch.randint(0, dimension, (chunks, 1))
    places = (torch.arange(dimension) - shifts) % dimension  # (chunks, d)
    projection = SparseProjection(COORDINATES, dimension, seed=0)

    def shifted_chunks() -> Tensor:
        accumulator = projection.start(EXAMPLES, block.device)
        projection.add(accumulator, 0, block)
        return projection.finish(accumulator)

    def scattered() -> Tensor:
        return torch.zeros(EXAMPLES, dimension).index_add_(1, buckets, block * signs)

    def gathered() -> Tensor:
        kept = chunks * dimension
        signed = (block[:, :kept] * signs[:kept]).view(EXAMPLES, chunks, dimension)
        return signed.gather(2, places.expand(EXAMPLES, chunks, dimension)).sum(dim=1)

    return {"shifted chunks (ours)": shifted_chunks, "scatter (index_add_)": scattered, "gather and sum": gathered}


def adam_directions() -> dict[str, Callable[[], Tensor]]:
    """The same direction in memory used again, and with fresh memory for every step of the formula."""
    shape = (128, 576)
    gradient = torch.randn(EXAMPLES, *shape) * 1e-6
    state = AdamState({"w": torch.rand(shape) * 1e-7}, {"w": torch.rand(shape) * 1e-14}, step=10)
    direction = Preconditioning("adam", state)

    def fresh() -> Tensor:
        first = state.exp_avg["w"] * 0.9 + gradient * 0.1
        second = state.exp_avg_sq["w"] * 0.999 + gradient * gradient * 0.001
        return (first / (1 - 0.9**11)) / ((second / (1 - 0.999**11)).sqrt() + 1e-8)

    return {"memory used again (ours)": lambda: direction("w", gradient.clone()), "fresh memory": fresh}


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread")
    for dimension in (1024, 8192):
        for name, work in layouts(dimension).items():
            print(f"projection d={dimension:<5} {name:26} {nanoseconds(work, EXAMPLES * COORDINATES):6.2f} ns")
    for name, work in adam_directions().items():
        print(f"Adam's direction   {name:26} {nanoseconds(work, EXAMPLES * 128 * 576, 20):6.2f} ns")


if __name__ == "__main__":
    main()
