"""What the tests of the engines let workers do; apart, so that a worker need not import everything for it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from pursuit.errors import DataError


def square(item: int, advance=None) -> int:
    for _ in range(3):
        time.sleep(0.05)
        if advance is not None:
            advance(1)
    return item * item


def refuse(item: int) -> int:
    if item == 3:
        raise DataError("no brace", path="pool.jsonl", line=7)
    return item


def die_on_seven(item: int) -> int:
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def sums(scale: float, rows: np.ndarray, start: int) -> tuple[int, np.ndarray]:
    return start, (scale * rows.astype(np.float64)).sum(axis=0)


def whose(rows: np.ndarray, start: int) -> int:
    time.sleep(0.002)
    return os.getpid()


def die_once(flag: Path, rows: np.ndarray, start: int) -> int:
    if start == 400 and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return int(rows[0, 0])
