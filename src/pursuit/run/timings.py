"""How long each stage took, over all starts; a start that is killed is counted but for its last seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pursuit.errors import PursuitError, StoreError
from pursuit.files import read_json, write_json

EVERY_SECONDS = 15.0


class Timings:
    """Seconds by stage, in a folder's timings.json.

    Args:
        folder: made when first written to.
        job: of several jobs at once each keeps a file of its own.
    """

    def __init__(self, folder: Path, job: str = "") -> None:
        self.path = folder / (f"timings-{job}.json" if job else "timings.json")
        self._lock = threading.Lock()

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Add the seconds of what is done meanwhile to what earlier starts took."""
        before, start, ended = self.read().get(stage, 0.0), time.monotonic(), threading.Event()

        def keep() -> None:
            while not ended.wait(EVERY_SECONDS):
                with suppress(PursuitError, OSError):  # the stage itself will say what is wrong
                    self._write(stage, before + time.monotonic() - start)

        keeper = threading.Thread(target=keep, daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()
            self._write(stage, before + time.monotonic() - start)

    def read(self) -> dict[str, float]:
        """Seconds so far."""
        return _seconds(self.path) if self.path.exists() else {}

    def _write(self, stage: str, seconds: float) -> None:
        with self._lock:
            write_json(self.path, {**self.read(), stage: seconds})


def added_up(folder: Path) -> dict[str, float]:
    """Seconds by stage; those of jobs that ran side by side are added up."""
    total: dict[str, float] = {}
    for path in sorted(folder.glob("timings*.json")):
        for stage, seconds in _seconds(path).items():
            total[stage] = total.get(stage, 0.0) + seconds
    return total


def _seconds(path: Path) -> dict[str, float]:
    try:
        return {str(stage): float(seconds) for stage, seconds in dict(read_json(path)).items()}
    except (StoreError, TypeError, ValueError):  # damaged: other starts' are better than none
        return {}
