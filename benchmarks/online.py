"""Batch selection against training on all: time a step and a kept example, memory, and what cheaper scores choose.

    python -m benchmarks.online [--parts cost memory agreement] [--model FOLDER --pool POOL.jsonl] [--rounds 5]

Cost: the plain step, a forward pass of all candidates without graph, and selected steps run in turn (A B C A B C …) on
the same batches; ratios are medians over the rounds, with their range. "beyond" is what a selected step takes beyond
the forward pass of all candidates and a plain step on as many of them as are kept: everything that is ours. CPU time is
counted because other work on the machine disturbs it less than wall time; on a GPU it is wall time.

Memory: peak resident memory that two steps add, each in a process of its own.

Agreement: a training by the published choice; at each step every cheaper score chooses from the same candidates with
the same weights and (but for "moment=examples") the same running second moment, so that only the score differs.
Agreement is the share of the published choice that it chooses too, chance is the share kept.

Without a model folder all of it is measured on a random Llama and on rows drawn from 12 Markov chains.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.online_case import Batch, Case
from pursuit.online import OptBatch, RandomBatch, take
from pursuit.online.base import BatchSelector

RATES = (0.2, 0.5, 0.7, 0.9)


def cost(arguments: argparse.Namespace) -> None:
    """Time of steps, and of what is ours in them."""
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    for learn in arguments.learn:
        case = Case(arguments, learn == "lora")
        selectors: dict[tuple[str, float], BatchSelector] = {}
        for rate in arguments.rates:
            selectors["random", rate], selectors["", rate] = RandomBatch(prune=rate), OptBatch(prune=rate)
        selectors["bfloat16", 0.7] = OptBatch(prune=0.7, score_dtype="bfloat16")
        selectors["moment=examples", 0.7] = OptBatch(prune=0.7, moment="examples")
        ways: dict[Any, Callable[[Batch], None]] = {"plain": case.learn, "forward": case.forward}
        for key, selector in selectors.items():
            ways[key] = partial(case.selected, selector=selector)
        seconds: dict[Any, list[float]] = {name: [] for name in ways}
        for turn in range(arguments.rounds + 1):
            batch = case.batches[turn % len(case.batches)]
            for name, way in ways.items():
                start = clock()
                way(batch)
                if arguments.device != "cpu":
                    torch.cuda.synchronize()
                if turn:
                    seconds[name].append(clock() - start)
        print_cost(case, seconds)


def print_cost(case: Case, seconds: dict[Any, list[float]]) -> None:
    """One block of the table."""
    labelled = float((case.batches[0]["labels"] != -100).sum() / case.batches[0]["attention_mask"].sum())
    size, length = case.batches[0]["input_ids"].shape
    plain, forward = seconds["plain"], seconds["forward"]
    print(f"\n{case.name}: B = {size}, up to {length} tokens, {100 * labelled:.0f} % learnt; plain step "
          f"{statistics.median(plain):.2f} s, forward pass of all {middle(forward, plain)[0]:.2f} of it")  # fmt: skip
    for what, rate in (key for key in seconds if isinstance(key, tuple) and key[0] != "random"):
        ours, random = seconds[what, rate], seconds["random", rate]
        kept = max(1, int((1 - rate) * size + 0.5))
        whole, low, high = middle(ours, plain)
        parts = [f + r for f, r in zip(forward, random, strict=True)]
        beyond = middle([o - p for o, p in zip(ours, parts, strict=True)], parts)
        print(f"  prune {rate:.1f}, {kept:2d} kept   {whole:5.2f} × plain a step ({low:.2f}–{high:.2f})   "
              f"{whole * size / kept:5.2f} × plain a kept example   beyond {100 * beyond[0]:+5.1f} % "
              f"({100 * beyond[1]:+.1f} to {100 * beyond[2]:+.1f})   random {middle(random, plain)[0]:.2f}   "
              f"{what}", flush=True)  # fmt: skip


def middle(over: list[float], under: list[float]) -> tuple[float, float, float]:
    """Median, least and largest ratio, round by round."""
    ratios = sorted(a / b for a, b in zip(over, under, strict=True))
    return statistics.median(ratios), ratios[0], ratios[-1]


def memory(arguments: argparse.Namespace) -> None:
    """Peak memory added by two steps on all, and by two selected ones."""
    for learn in arguments.learn:
        peaks = {}
        for rate in (0.0, 0.2, 0.7):
            command = [sys.executable, "-m", "benchmarks.online", "--one-memory", str(rate), learn, "--batch",
                       str(arguments.batch), "--prompt", str(arguments.prompt)]  # fmt: skip
            if arguments.model:
                command += ["--model", arguments.model, "--pool", arguments.pool]
            peaks[rate] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{learn}: two steps add {peaks[0.0]:,.0f} MB on all, " + ", ".join(
            f"{peaks[rate]:,.0f} MB at prune {rate} ({peaks[rate] / peaks[0.0]:.2f} ×)" for rate in peaks if rate))


def one_memory(arguments: argparse.Namespace) -> None:
    """In a process of its own: the peak that two steps add after one that warms up, MB."""
    rate, learn = arguments.one_memory
    case, selector = Case(arguments, learn == "lora"), OptBatch(prune=float(rate))

    def read(key: str) -> float:
        return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) / 1024

    small = take(case.batches[0], np.arange(2))
    for _ in range(2):
        case.selected(small, selector)
    Path("/proc/self/clear_refs").write_text("5")
    before = read("VmRSS")
    for batch in case.batches[:2]:
        case.selected(batch, selector)
    print(read("VmHWM") - before)


def agreement(arguments: argparse.Namespace) -> None:
    """What cheaper scores choose, and what they take, beside the published choice."""
    for learn in arguments.learn:
        case = Case(arguments, learn == "lora")
        layers = case.model.config.num_hidden_layers
        options: dict[str, dict[str, Any]] = {
            "as published": {}, "score_dtype=bfloat16": {"score_dtype": "bfloat16"},
            "carry=2": {"carry": 2}, "carry=4": {"carry": 4},
            f"exit_layer={3 * layers // 4}": {"exit_layer": 3 * layers // 4},
            f"exit_layer={layers // 2}": {"exit_layer": layers // 2},
            "every=2, random": {"every": 2}, "every=2, carried": {"every": 2, "between": "carried"},
            "moment=examples": {"moment": "examples"}, "projection=0": {"projection": 0},
            "feature=grad_norm": {"feature": "grad_norm"}, "feature=embedding": {"feature": "embedding"},
        }  # fmt: skip
        wanted = {"as published", *(arguments.scores or options)}
        chosen: dict[str, BatchSelector] = {
            name: OptBatch(prune=0.7, **more) for name, more in options.items() if name in wanted
        }
        chosen["random"] = RandomBatch(prune=0.7)
        same, seconds = defaultdict(list), defaultdict(list)
        steps = arguments.steps
        for step in range(steps):
            batch = case.batches[step % len(case.batches)]
            keep: dict[str, set[int]] = {}
            for name, selector in chosen.items():
                start = time.process_time()
                keep[name] = set(selector(case.model, batch).tolist())
                seconds[name].append(time.process_time() - start)
                same[name].append(len(keep[name] & keep["as published"]) / len(keep["as published"]))
            kept = torch.tensor(sorted(keep["as published"]))
            case.learn(take(batch, kept), partial(watch, chosen, seconds))
        print(f"\n{case.name}: prune 0.7, {steps} steps over {len(case.batches)} batches of {arguments.batch}")
        base = sum(seconds["as published"])
        for name in chosen:
            share = sum(seconds[name]) / base
            print(f"  {name:22s} agreement {np.mean(same[name]):.2f}   time of the choice {share:.2f}", flush=True)


def watch(chosen: dict[str, BatchSelector], seconds: dict[str, list[float]], model: nn.Module) -> None:
    """Show every selector the gradient, on its own time."""
    for name, selector in chosen.items():
        start = time.process_time()
        selector.observe(model)
        seconds[name][-1] += time.process_time() - start
    for name, selector in chosen.items():
        if isinstance(selector, OptBatch) and name != "moment=examples":
            selector._moment.load(chosen["as published"].state())


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["cost", "memory", "agreement"])
    parser.add_argument("--model", help="folder of a causal LM with q,k,v,o projections, for example SmolLM2-135M")
    parser.add_argument("--pool", help="JSONL with messages, for --model")
    parser.add_argument("--learn", nargs="+", default=["full", "lora"])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the 128 of a random row that are not learnt")
    parser.add_argument("--batch", type=int, default=16, help="B, candidates")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--scores", nargs="+", help="cheaper scores to compare, by their names in the table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--one-memory", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one_memory:
        one_memory(arguments)
        return
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.dtype}, {arguments.threads} threads, "
          f"{arguments.rounds} rounds")  # fmt: skip
    for part in arguments.parts:
        print(f"\n{part}")
        {"cost": cost, "memory": memory, "agreement": agreement}[part](arguments)


if __name__ == "__main__":
    main()
