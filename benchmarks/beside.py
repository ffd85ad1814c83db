"""The same work by pursuit, by other libraries and by plain passes, in turn, each in a process of its own."""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.common import COMPARED, LONGEST, TOKENS
from benchmarks.peers.install import PEERS, InstallError, python_of, version_here, version_of
from benchmarks.processes import PATIENCE, FailedError, OnCall, on_call
from pursuit.encoding import Encoder, encode_pool
from pursuit.models.loading import load_tokenizer
from pursuit.pool import Pool

SCRIPTS = Path(__file__).parent / "peers"
FLOOR, OURS = "forward + backward, frozen", "pursuit"
SLOW = ("trak", "less' own way")  # once is enough
OTHERS = ("bergson", "dattri-llm", "logix", "trak", "less' own way")
MODELS = {"small": "small Llama", "smollm2": "Llama of SmolLM2-135M's size"}
PATIENCE_OF_A_GPU = 150.0  # seconds for a process or a pass beside a GPU, which is not ours for long


@dataclass(frozen=True)
class Work:
    """What everything is given to do.

    Attributes:
        side: numbers a side of a matrix.
        rank: of a LoRA whose gradients are wanted; 0 for those of the model's own matrices.
        lengths: file of the rows' lengths; rows of 128 tokens without.
        device, dtype, size: of the model; cpu or cuda, and a name of `MODELS`.
        batch: rows at once, or of longer and shorter ones 128 times as many tokens.
        here: the peers can be imported by this interpreter, and no environment is made for them.
    """

    side: int
    rows: int
    rank: int = 0
    lengths: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    size: str = "small"
    batch: int = 16
    here: bool = False

    @property
    def cuda(self) -> bool:
        """Wall time is what counts, and the memory of the GPU."""
        return self.device == "cuda"

    @property
    def options(self) -> list[str]:
        """As every script takes them."""
        told = {
            "side": self.side, "rows": self.rows, "lora": self.rank, "batch": self.batch, "device": self.device,
            "dtype": self.dtype, "size": self.size, **({"lengths": self.lengths} if self.lengths else {}),
        }  # fmt: skip
        return [word for name, value in told.items() for word in (f"--{name}", str(value))]

    @property
    def environment(self) -> dict[str, str]:
        """Of every process; where the peers are here, what the path was stays on it."""
        root, before = SCRIPTS.parent.parent, os.environ.get("PYTHONPATH")
        paths = [str(root / "src"), str(root), *([before] if before and self.here else [])]
        threads = {} if self.cuda else {"OMP_NUM_THREADS": "1"}
        return {**os.environ, **threads, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(paths)}

    def __str__(self) -> str:
        lora = f", LoRA r={self.rank}" if self.rank else ""
        place = torch.cuda.get_device_name() if self.cuda else "CPU"
        what = f"{self.rows} rows of {TOKENS} tokens, batches of {self.batch}"
        if self.lengths:
            sizes = np.array(json.loads(self.lengths.read_text()))
            what = (
                f"{self.rows} rows as long as a pool's ({sizes[:, 0].min()} to {sizes[:, 0].max()} tokens, mean "
                f"{sizes[:, 0].mean():.0f}, {1 - sizes[:, 1].sum() / sizes[:, 0].sum():.0%} learnt), batches of "
                f"{self.batch * TOKENS:,} tokens"
            )
        return f"{MODELS[self.size]}{lora}, {self.dtype}, {place}, {self.side}×{self.side} a matrix, {what}"


def commands(peers: list[str], work: Work) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What to call for each way, and the version of each peer; one that cannot be installed is left out, with why."""
    here = sys.executable
    ways = {
        "forward": [here, "plain.py"], FLOOR: [here, "plain.py", "--backward"],
        OURS: [here, "ours.py"],
    }  # fmt: skip
    other = "factored" if work.rank else "tensorsketch"
    ways[f"{OURS}, {other}"] = [*ways[OURS], "--projection", other]
    versions = {}
    for peer in peers:
        if peer not in PEERS:
            ways[peer] = [here, "batch_one.py"]
            continue
        try:
            script = f"with_{peer.replace('-', '_')}.py"
            python = here if work.here else str(python_of(peer))
            ways[peer] = [python, script]
            versions[peer] = version_here(peer) if work.here else version_of(peer)
        except InstallError as error:
            print(f"left out: {error}", flush=True)
    return ways, versions


def called_in_turn(ways: Mapping[str, list[str]], work: Work, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What each process answers in each round; one that fails is named and left out.

    All get ready at once, and one works at a time.
    """
    scripts = {name: [one[0], str(SCRIPTS / one[1]), *one[2:], *work.options] for name, one in ways.items()}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    failed: set[str] = set()
    with on_call(scripts, work.environment, PATIENCE_OF_A_GPU if work.cuda else PATIENCE) as processes:

        def answers(name: str, ask: Callable[[OnCall], dict[str, Any] | None]) -> dict[str, Any] | None:
            try:
                return ask(processes[name])
            except FailedError as error:
                print(f"left out: {name} failed: {error}", flush=True)
                failed.add(name)
                return None

        for name in ways:
            answers(name, OnCall.ready)
        for turn in range(rounds):
            for name in ways:
                if name in failed or (turn and name in SLOW):
                    continue
                if answer := answers(name, OnCall.call):
                    found[name].append(answer)
                    if work.cuda:  # lest all be lost when the GPU is taken away
                        print(f"round {turn + 1}, {name}: {answer['rate']:,.0f} rows/s", flush=True)
    return {name: answers for name, answers in found.items() if answers}


def pool_lengths(pool: str, model: str, count: int, folder: Path) -> Path:
    """[tokens, place of the first that is learnt] of random rows of a pool, as that model's tokenizer makes them."""
    encoder = Encoder(load_tokenizer(model), max_length=LONGEST)
    encoded = encode_pool(Pool([pool], on_bad_row="skip"), encoder, folder / "encoded")
    chosen = np.random.default_rng(0).choice(len(encoded), count, replace=False)
    learnt = [encoded[int(index)][1] for index in chosen]
    path = folder / "lengths.json"
    path.write_text(json.dumps([[len(row), int(np.argmax(row))] for row in learnt]))
    return path


@functools.cache
def exact_cosines(work: Work) -> list[float]:
    """Of all coordinates of the first rows; none if they could not be made."""
    found = called_in_turn({"all coordinates": [sys.executable, "ours.py"]}, work, 1)
    cosines: list[float] = found["all coordinates"][0]["cosines"] if found else []
    return cosines


def compare(peers: list[str], work: Work, rounds: int) -> None:
    """Print the table of one kind of work."""
    ways, versions = commands(peers, work)
    # beside a GPU, which is not ours for long, without: a projection is the same there
    exact = [] if work.cuda else exact_cosines(replace(work, side=0, rows=COMPARED))
    found = called_in_turn(ways, work, rounds)
    print(f"\n{work}, {rounds} rounds in turn")
    unit = "rows/s (range)" if work.cuda else "rows/CPU-s (range)"
    print(f"{'':28} {unit:22} × frozen pass   pursuit is   added MB   bytes/row   cosines'")
    print(f"{'':28}                                         × faster                          agreement")
    for name, answers in found.items():
        print(_line(f"{name} {versions.get(name, '')}".strip(), answers, found, exact, 0 if work.cuda else 2))


def _line(
    title: str, answers: list[dict[str, Any]], found: dict[str, list[dict[str, Any]]], exact: list[float], digits: int
) -> str:
    mine = [answer["rate"] for answer in answers]

    def ratios(which: str) -> list[float]:
        return [a / answer["rate"] for a, answer in zip(mine, found.get(which, []), strict=False)]

    def middle(values: list[float], form: str) -> str:
        return format(statistics.median(values), form) if values else "–"

    last = answers[-1]
    memory = answers[0]["added_mb"]  # later passes find the first one's memory still there
    cosines = last.get("cosines", [])
    agreement = f"{statistics.correlation(cosines, exact):.3f}" if len(cosines) == len(exact) > 1 else "–"
    spread = f"{middle(mine, f'6.{digits}f')} ({min(mine):.{digits}f}–{max(mine):.{digits}f})"
    floor, gain = middle(ratios(FLOOR), ".3f"), middle([1 / ratio for ratio in ratios(OURS)], ".2f")
    return (
        f"{title:28} {spread:22} {floor:>8}      {gain:>8}   {memory:8.0f}   {last.get('bytes_a_row', 0):9,.0f}   "
        f"{agreement:>6}   {last['computed']}"
    )
