"""The same work by pursuit, by other libraries and by plain passes, in turn, each in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.common import COMPARED, LONGEST
from benchmarks.peers.install import PEERS, InstallError, python_of, version_of
from pursuit.encoding import Encoder, encode_pool
from pursuit.models.loading import load_tokenizer
from pursuit.pool import Pool

SCRIPTS = Path(__file__).parent / "peers"
FLOOR, OURS = "forward + backward, frozen", "pursuit"
SLOW = ("trak", "less' own way")  # once is enough
OTHERS = ("bergson", "dattri-llm", "logix", "trak", "less' own way")


@dataclass(frozen=True)
class Work:
    """What everything is given to do.

    Attributes:
        side: numbers a side of a matrix.
        rank: of a LoRA whose gradients are wanted; 0 for those of the model's own matrices.
        lengths: file of the rows' lengths; rows of 128 tokens without.
    """

    side: int
    rows: int
    rank: int = 0
    lengths: Path | None = None

    @property
    def options(self) -> list[str]:
        """As every script takes them, but for rows and side."""
        return ["--lora", str(self.rank), *(["--lengths", str(self.lengths)] if self.lengths else [])]

    def __str__(self) -> str:
        lora = f", LoRA r={self.rank}" if self.rank else ""
        what = f"{self.rows} rows of 128 tokens, batches of 16"
        if self.lengths:
            sizes = np.array(json.loads(self.lengths.read_text()))
            what = (
                f"{self.rows} rows as long as a pool's ({sizes[:, 0].min()} to {sizes[:, 0].max()} tokens, mean "
                f"{sizes[:, 0].mean():.0f}, {1 - sizes[:, 1].sum() / sizes[:, 0].sum():.0%} learnt)"
            )
        return f"small Llama{lora}, {self.side}×{self.side} a matrix, {what}"


def commands(peers: list[str], work: Work) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What to call for each way, and the version of each peer; one that cannot be installed is left out, with why."""
    here = sys.executable
    ways = {
        "forward": [here, "plain.py"], FLOOR: [here, "plain.py", "--backward"],
        OURS: [here, "ours.py", "--side", str(work.side)],
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
            ways[peer], versions[peer] = [str(python_of(peer)), script, "--side", str(work.side)], version_of(peer)
        except InstallError as error:
            print(f"left out: {error}", flush=True)
    return ways, versions


def once(command: list[str], options: list[str]) -> dict[str, Any] | str:
    """The line that one process answers with, or the last line of its error."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    root = SCRIPTS.parent.parent
    environment["PYTHONPATH"] = f"{root / 'src'}{os.pathsep}{root}"
    script = [command[0], str(SCRIPTS / command[1]), *command[2:], *options]
    done = subprocess.run(script, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return (done.stderr.strip().splitlines() or ["no answer"])[-1]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def pool_lengths(pool: str, model: str, count: int, folder: Path) -> Path:
    """[tokens, place of the first that is learnt] of random rows of a pool, as that model's tokenizer makes them."""
    encoder = Encoder(load_tokenizer(model), max_length=LONGEST)
    encoded = encode_pool(Pool([pool], on_bad_row="skip"), encoder, folder / "encoded")
    chosen = np.random.default_rng(0).choice(len(encoded), count, replace=False)
    learnt = [encoded[int(index)][1] for index in chosen]
    path = folder / "lengths.json"
    path.write_text(json.dumps([[len(row), int(np.argmax(row))] for row in learnt]))
    return path


def compare(peers: list[str], work: Work, rounds: int) -> None:
    """Print the table of one kind of work."""
    ways, versions = commands(peers, work)
    options = ["--rows", str(work.rows), *work.options]
    exact = once([sys.executable, "ours.py", "--side", "0"], ["--rows", str(COMPARED), *work.options])
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name, command in list(ways.items()):
            if turn and name in SLOW:
                continue
            answer = once(command, options)
            if isinstance(answer, str):
                print(f"left out: {name} failed: {answer}", flush=True)
                del ways[name], found[name]
            else:
                found[name].append(answer)
    print(f"\n{work}, {rounds} rounds in turn")
    print(f"{'':28} rows/CPU-s (range)     × frozen pass   pursuit is   added MB   bytes/row   cosines'")
    print(f"{'':28}                                         × faster                          agreement")
    for name, answers in found.items():
        print(_line(name, answers, found, exact if isinstance(exact, dict) else {}, versions))


def _line(
    name: str, answers: list[dict[str, Any]], found: dict[str, list[dict[str, Any]]], exact: dict[str, Any],
    versions: dict[str, str],
) -> str:  # fmt: skip
    def rates(which: str) -> list[float]:
        return [answer["rows_a_cpu_second"] for answer in found[which]]

    mine, middle = rates(name), statistics.median(rates(name))
    floor = statistics.median(a / b for a, b in zip(mine, rates(FLOOR), strict=False))
    gain = statistics.median(b / a for a, b in zip(mine, rates(OURS), strict=False))
    last = answers[-1]
    memory = statistics.median(answer["added_mb"] for answer in answers)
    pairs = last.get("cosines", []), exact.get("cosines", [])
    agreement = f"{statistics.correlation(*pairs):.3f}" if len(pairs[0]) == len(pairs[1]) > 1 else "–"
    title = f"{name} {versions.get(name, '')}".strip()
    spread = f"{middle:6.2f} ({min(mine):.2f}–{max(mine):.2f})"
    return (
        f"{title:28} {spread:22} {floor:8.3f}      {gain:8.2f}   {memory:8.0f}   {last.get('bytes_a_row', 0):9,.0f}   "
        f"{agreement:>6}   {last['computed']}"
    )
