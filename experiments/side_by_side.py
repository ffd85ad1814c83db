"""Several processes of this machine that share its GPU: work on small models is too short to fill it alone."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from pursuit import Run
from pursuit.compare import Comparison
from pursuit.compare.choices import choices
from pursuit.progress import Advance
from pursuit.solvers.rows import RowMatrix

Result = TypeVar("Result")


class SideBySide:
    """An engine (`pursuit.engine.Engine`) of so many processes; work that reports its progress runs in this one."""

    folder: Path | None = None

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    def map(
        self, function: Callable[..., Result], items: Iterable[Any], advance: Advance | None = None
    ) -> Iterator[Result]:
        """function(item) of every item, in the order of the items."""
        if advance is not None:
            return (function(item, advance) for item in items)
        return self._pool.map(function, items)

    def spread(self, matrix: RowMatrix) -> RowMatrix:
        """The matrix itself."""
        return matrix

    def close(self) -> None:
        """Stop the processes."""
        self._pool.shutdown()


def choose_ahead(engine: SideBySide, run: Run, comparison: Comparison, out: Path) -> None:
    """Make a comparison's choices, a method a process; `compare` then finds them in `out`."""
    run.extract()
    torch.cuda.empty_cache()  # for the other processes
    choices(run, replace(comparison, methods=("random",)), out)
    others = [name for name in comparison.all_methods() if name != "random"]
    list(engine.map(partial(_choose, run.folder.path, comparison, out), others))


def _choose(run: Path, comparison: Comparison, out: Path, method: str) -> None:
    """From a copy of the run folder, which is for one process at a time; big files are linked."""
    copy = out / f"run-{os.getpid()}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy, copy_function=os.link, ignore=shutil.ignore_patterns("lock"))
    try:
        choices(Run(copy), replace(comparison, methods=(method,)), out)
    finally:
        shutil.rmtree(copy)
