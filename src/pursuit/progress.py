"""One progress bar for everything that takes longer than a moment: rate, share done, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True)
LOG_EVERY_SECONDS = 20.0  # when the output is a file or a job log: one line as often as this


class Advance(Protocol):
    """Called with how many units are done since the last call."""

    def __call__(self, units: float, /) -> None: ...


class _Rate(ProgressColumn):
    """Units a second, in the unit that the task names."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f} {task.fields['unit']}/s")


@contextmanager
def progress(description: str | None, total: float, unit: str = "rows", done: float = 0) -> Iterator[Advance]:
    """Show progress on stderr: a live bar on a terminal, a line now and then elsewhere.

    Args:
        description: what is being done, for a person; None shows nothing.
        total: how many units there are.
        unit: the unit's name in the plural.
        done: units finished before (a resumed stage); they do not count towards the rate.
    """
    if description is None:
        yield lambda units: None
        return
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            _Rate(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(description, total=total, completed=int(done), unit=unit)
            yield lambda units: bar.advance(task, units)
        return
    yield _log_lines(description, total, unit, done)


def _log_lines(description: str, total: float, unit: str, done: float) -> Advance:
    started = last = time.monotonic()
    finished = done

    def advance(units: float) -> None:
        nonlocal finished, last
        finished += units
        now = time.monotonic()
        if now - last < LOG_EVERY_SECONDS:
            return
        last = now
        rate = (finished - done) / (now - started)
        left = f", {rate:,.1f} {unit}/s, {(total - finished) / rate / 60:,.1f} min left" if rate > 0 else ""
        print(f"{description}: {finished:,.0f}/{total:,.0f} {unit}{left}", file=sys.stderr, flush=True)

    return advance


def say(message: str) -> None:
    """A line for the person at the terminal, on stderr."""
    console.print(message, markup=False, highlight=False)
