"""The inner loops of extraction, one against another: layouts of a sparse projection, Adam's direction, and what
forming a matrix' gradient takes beside projecting it before.

    python -m benchmarks.kernels          # about a minute; nanoseconds of CPU time a coordinate, one thread

The layouts that lost are kept here only, so that the choice can be checked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pursuit.gradients import AdamState, Preconditioning
from pursuit.gradients.factors import make_factors
from pursuit.gradients.project import SparseProjection
from pursuit.gradients.sketch import COLUMNS, ROWS, MatrixSketch
from pursuit.gradients.tensorsketch import make_tensor_sketch

EXAMPLES, COORDINATES = 16, 1_000_000
TOKENS = 512


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


def gradients(rows: int, columns: int) -> dict[str, Callable[[], Tensor]]:
    """Per-example gradients of one matrix (R, C), of 4 rows of 128 tokens: formed, by two factors, and by sketches."""
    u, v = torch.randn(4, TOKENS // 4, rows), torch.randn(4, TOKENS // 4, columns)
    shapes = {"w": (rows, columns)}

    def of(sketch: MatrixSketch) -> Callable[[], Tensor]:
        return lambda: sketch.product("w", sketch.narrow("w", ROWS, u), sketch.narrow("w", COLUMNS, v))

    sketches = {f"D={d}": make_tensor_sketch(shapes, d, 0, worth=-1, wider=1) for d in (128, 256, 512, 1024)}
    return {
        "formed": lambda: torch.bmm(u.mT, v), "factors": of(make_factors(shapes, 256, 0)),
        **{name: of(sketch) for name, sketch in sketches.items()},
    }  # fmt: skip


def main() -> None:
    """Print the tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread")
    for dimension in (1024, 8192):
        for name, work in layouts(dimension).items():
            print(f"projection d={dimension:<5} {name:26} {nanoseconds(work, EXAMPLES * COORDINATES):6.2f} ns")
    for name, work in adam_directions().items():
        print(f"Adam's direction   {name:26} {nanoseconds(work, EXAMPLES * 128 * 576, 20):6.2f} ns")
    for shape in ((256, 256), (688, 256), (576, 128), (576, 576), (1536, 576), (2048, 2048)):
        times = {name: nanoseconds(work, TOKENS, 7) / 1000 for name, work in gradients(*shape).items()}
        line = "   ".join(f"{name} {time:6.2f}" for name, time in times.items())
        print(f"gradient of {shape[0]:4} × {shape[1]:4}, µs a token   {line}")


if __name__ == "__main__":
    main()
