"""Every figure of benchmarks/RESULTS.md from one place.

    python -m benchmarks run                              # extraction: plain passes and pursuit
    python -m benchmarks run --peers                      # beside other libraries, installed at first use
    python -m benchmarks run --peers bergson --sides 16 --rounds 5
    python -m benchmarks run --peers --model FOLDER --pool FILE    # also rows as long as those of a pool
    python -m benchmarks run --peers --lora 8 128 --sides 16       # the gradients of a LoRA
    python -m benchmarks run --parts beside --peers bergson --here --device cuda --dtype bfloat16 --size smollm2
    python -m benchmarks run --parts extraction --model FOLDER

Other parts are commands of their own: benchmarks.kernels, .factors, .solvers, .gtp, .scale, .memory, .codecs, .online,
.padding, .ray_scaling.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from itertools import product
from pathlib import Path

import torch
import transformers

from benchmarks import beside, extraction


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    run = parser.add_subparsers(dest="what", required=True).add_parser("run")
    run.add_argument("--parts", nargs="+", choices=["beside", "extraction"], default=["beside", "extraction"])
    names = ", ".join(beside.OTHERS)
    run.add_argument("--peers", nargs="*", default=None, metavar="PEER", help=f"{names}; all of them if none is named")
    run.add_argument("--sides", type=int, nargs="+", default=[16, 64], help="numbers a side of a matrix")
    run.add_argument("--lora", type=int, nargs="+", default=[0], help="ranks of a LoRA; 0: the model's own weights")
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--rows", type=int, default=64)
    run.add_argument("--size", default="small", choices=list(beside.MODELS), help="of the model that peers are given")
    run.add_argument("--batch", type=int, default=16, help="rows of 128 tokens at once")
    run.add_argument("--here", action="store_true", help="the peers can be imported here: make no environments")
    extraction.add_arguments(run)
    arguments = parser.parse_args()
    if arguments.peers == []:
        arguments.peers = list(beside.OTHERS)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}")
    if "beside" in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            lengths: list[Path | None] = [None]
            if arguments.pool and arguments.model:
                lengths.append(beside.pool_lengths(arguments.pool, arguments.model, arguments.rows, Path(folder)))
            for rank, side, sizes in product(arguments.lora, arguments.sides, lengths):
                work = beside.Work(
                    side, arguments.rows, rank, sizes, arguments.device, arguments.dtype, arguments.size,
                    arguments.batch, arguments.here,
                )  # fmt: skip
                beside.compare(arguments.peers or [], work, arguments.rounds)
    if "extraction" in arguments.parts:
        extraction.run(arguments)


if __name__ == "__main__":
    main()
