"""`python -m demo`: from nothing to a subset and its report, by the commands that a user would type."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from demo.fetch import fetch_model
from demo.pool import make_pool

RUN = "runs/demo"
SETTINGS = "demo/small.yaml"
CLUSTERS = "clusters=6"  # the default of 100 is meant for pools of thousands


def say(message: str) -> None:
    """Print at once and unwrapped, so that a command can be copied."""
    print(message, flush=True)


def pursuit(*arguments: str) -> float:
    """Show a command and run it; returns its seconds. A command that fails ends the demonstration."""
    say(f"\n$ pursuit {shlex.join(arguments)}\n")
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "pursuit", *arguments], check=False)
    if done.returncode:
        raise SystemExit(f"The command above failed (exit status {done.returncode}).")
    return time.monotonic() - start


def idle_cores() -> int:
    """How many threads to calculate with: more threads than idle cores wait for each other and are far slower."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores - round(os.getloadavg()[0]))


def main() -> None:
    """Fetch what is not there yet, then look, select three times, and say where everything lies."""
    os.chdir(Path(__file__).parent.parent)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", str(idle_cores()))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    start = time.monotonic()
    model = str(fetch_model())
    pool, target = map(str, make_pool())
    fetched = time.monotonic()
    settings = ("--config", SETTINGS, "--model", model, "--pool", pool)
    pursuit("inspect", *settings, "--target", target)
    from_pool = ("select", "--run", RUN, *settings, "--budget", "5%")
    first = pursuit(*from_pool, "--method", "tagcos", "--param", CLUSTERS, "--out", f"{RUN}/tagcos.jsonl")
    say("\nThe gradients are kept in the run folder, so that another method takes seconds:")
    again = pursuit("select", "--run", RUN, "--method", "random", "--budget", "5%", "--out", f"{RUN}/random.jsonl")
    aimed = pursuit(
        "select", "--run", RUN, "--target", target, "--method", "less", "--budget", "5%", "--out", f"{RUN}/less.jsonl"
    )
    say("\nWhat each method left, the subset, why each row was chosen, and the report:\n")
    for name in ("tagcos", "random", "less"):
        for file in sorted(Path(RUN).glob(f"{name}.*")):
            say(f"  {file.resolve()}")
    say(
        f"\nTAGCOS with warm-up and gradients took {first:.0f} s, random from the same run {again:.0f} s, "
        f"LESS with the target's gradients {aimed:.0f} s.\n"
        f"Downloads and unpacking took {fetched - start:.0f} s; in all {time.monotonic() - start:.0f} s."
    )


if __name__ == "__main__":
    main()
