"""Extraction by two Ray workers against one, each pinned to one processor: rows a second, and start-up apart.

    python -m benchmarks.ray_scaling [--rows 1536] [--shard-rows 32] [--rounds 3]

One run is made first (a small Llama with random weights, random rows, a short warm-up); then its gradients are computed
by one worker and by two in turn, always anew. A worker's rate counts from the end of its first shard, which includes
loading model and trajectory, to the end of its last; the rates of all workers are added up. Shards of all rounds are
compared bit by bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pursuit import Run
from pursuit.engine.ray_engine import RayEngine
from pursuit.progress import Advance
from pursuit.run.stages import Stages
from pursuit.run.workers import ShardMaker, fill_on

VOCABULARY = 2048


@dataclass
class Timed:
    """Makes shards and says which process made them, from when to when, and how many rows."""

    maker: ShardMaker

    def __call__(self, unit: tuple[int, int], advance: Advance) -> tuple[int, float, float, float]:
        """(process, begun, ended, rows)."""
        rows: list[float] = []
        begun = time.time()

        def count(units: float) -> None:
            rows.append(units)
            advance(units)

        self.maker(unit, count)
        return os.getpid(), begun, time.time(), sum(rows)


class Measured:
    """An engine that keeps the times of all shards, and pins its workers to processors of their own."""

    def __init__(self, engine: RayEngine) -> None:
        self.engine, self.workers, self.folder = engine, engine.workers, engine.folder
        self.times: list[tuple[int, float, float, float]] = []
        self._pinned: list[int] = []

    def map(self, function: Any, items: Any, advance: Advance | None = None) -> Any:
        """As `RayEngine.map`, for the making of shards."""
        for times in self.engine.map(Timed(function), items, advance):
            processes = sorted(process for process, _ in self.engine.processes())
            if processes != self._pinned:
                pin(processes)
                self._pinned = processes
            self.times.append(times)
            yield None

    def spread(self, matrix: Any) -> Any:
        """As `RayEngine.spread`."""
        return self.engine.spread(matrix)

    def close(self) -> None:
        """As `RayEngine.close`."""
        self.engine.close()

    def rate(self) -> float:
        """Rows a second of all workers together, after the first shard of each."""
        total = 0.0
        for process in {process for process, *_ in self.times}:
            own = sorted((ended, rows) for worker, _, ended, rows in self.times if worker == process)
            total += sum(rows for _, rows in own[1:]) / (own[-1][0] - own[0][0])
        return total

    def first_shards(self) -> float:
        """When the last worker had ended its first shard."""
        firsts: dict[int, float] = {}
        for process, _, ended, _ in self.times:
            firsts[process] = min(ended, firsts.get(process, ended))
        return max(firsts.values())


def pin(processes: list[int]) -> None:
    """Every process, with all its threads, to a processor of its own."""
    processors = sorted(os.sched_getaffinity(0))
    for process, processor in zip(processes, processors, strict=False):
        for thread in os.listdir(f"/proc/{process}/task"):
            os.sched_setaffinity(int(thread), {processor})


def make_model(folder: Path, hidden: int, layers: int) -> None:
    """A Llama with random weights, and a tokenizer whose tokens are the words w0, w1, …"""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=hidden * 8 // 3, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=VOCABULARY, max_position_embeddings=512,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {name: number for number, name in enumerate(["<pad>", "<s>", "</s>", "<unk>"])}
    words |= {f"w{number}": number for number in range(len(words), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def make_run(folder: Path, arguments: argparse.Namespace) -> Run:
    """Tokens and warm-up; the gradients are what is measured."""
    generator = np.random.default_rng(0)
    make_model(folder / "model", arguments.hidden, arguments.layers)
    with open(folder / "pool.jsonl", "w") as pool:
        for _ in range(arguments.rows):
            words = [f"w{number}" for number in generator.integers(4, VOCABULARY, generator.integers(100, 140))]
            pool.write(json.dumps({"prompt": " ".join(words[:50]), "response": " ".join(words[50:])}) + "\n")
    run = Run(
        folder / "run", model=folder / "model", pool=folder / "pool.jsonl", chat_template="plain",
        lora={"rank": 8, "alpha": 32}, warmup={"batch_size": 8, "checkpoint_steps": [2], "learning_rate": 1e-3},
        features={"dimension": 1024, "shard_rows": arguments.shard_rows, "batch_tokens": 2048},
    )  # fmt: skip
    run.warmup()
    return run


def measure(run: Run, workers: int) -> tuple[float, float, float, Mapping[str, bytes]]:
    """(rows a second, seconds of start-up, seconds in all, shards by name)."""
    shutil.rmtree(run.folder.features, ignore_errors=True)
    started = time.time()
    with RayEngine(workers=workers) as engine:
        measured = Measured(engine)
        Stages(run.folder, run.settings, fill_on(measured, run.folder, run.settings)).features()
        ended = time.time()
    shards = {path.name: path.read_bytes() for path in run.folder.features.rglob("*.safetensors")}
    return measured.rate(), measured.first_shards() - started, ended - started, shards


def main() -> None:
    """Parse the command line and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1536)
    parser.add_argument("--shard-rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), arguments)
        print(f"{arguments.rows} rows of 100–140 tokens, one checkpoint, shards of {arguments.shard_rows}")
        ratios, whole, first = [], [], None
        for _ in range(arguments.rounds):
            rates, times = [], []
            for workers in (1, 2):
                rate, start_up, seconds, shards = measure(run, workers)
                first = first or shards
                same = "same bits" if shards == first else "OTHER BITS"
                print(f"  {workers} worker{'s' * (workers > 1):1s}  {rate:8.2f} rows/s  start-up {start_up:6.1f} s  "
                      f"in all {seconds:7.1f} s  {same}", flush=True)  # fmt: skip
                rates.append(rate)
                times.append(seconds)
            ratios.append(rates[1] / rates[0])
            whole.append(times[0] / times[1])
        print(f"2 workers against 1: {statistics.median(ratios):.2f} × ({min(ratios):.2f}–{max(ratios):.2f}) in rows a "
              f"second, {statistics.median(whole):.2f} × with start-up")  # fmt: skip


if __name__ == "__main__":
    main()
