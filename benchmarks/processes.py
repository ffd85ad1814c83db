"""Processes that stand ready and are called one after the other: nothing is loaded while another is timed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

PATIENCE = 3600.0  # seconds that one may take to get ready, or for one pass


class FailedError(Exception):
    """One gave no answer: the message is the last line of its error, or that it took too long."""


class OnCall:
    """A process that begins at once, and on a line of its input does its work and answers with a line of JSON.

    Args:
        patience: seconds that it may take to get ready, or for one pass.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], patience: float = PATIENCE) -> None:
        self.patience = patience
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            env=dict(environment),
        )  # fmt: skip

    def ready(self) -> None:
        """Wait until it has everything that it needs.

        Raises:
            FailedError: it has ended.
        """
        self._line()

    def call(self) -> dict[str, Any]:
        """Let it do its work once.

        Raises:
            FailedError: it has ended, or took longer than it may.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        found: dict[str, Any] = self._line()
        return found

    def _line(self) -> Any:
        """The next line that is JSON: libraries print what they like."""
        assert self._process.stdout is not None
        clock = threading.Timer(self.patience, self._process.kill)
        begun = time.monotonic()
        clock.start()
        try:
            for line in self._process.stdout:
                if line.startswith("{"):
                    return json.loads(line)
        finally:
            clock.cancel()
        self._process.wait()
        if time.monotonic() - begun >= self.patience:
            raise FailedError(f"not done after {self.patience:.0f} seconds")
        self._errors.seek(0)
        raise FailedError((self._errors.read().strip().splitlines() or ["no answer"])[-1][:300])

    def end(self) -> None:
        """Stop it."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


@contextlib.contextmanager
def on_call(
    commands: Mapping[str, list[str]], environment: Mapping[str, str], patience: float = PATIENCE
) -> Iterator[dict[str, OnCall]]:
    """All of them begun at once; stopped at the end."""
    begun = {name: OnCall(command, environment, patience) for name, command in commands.items()}
    try:
        yield begun
    finally:
        for one in begun.values():
            one.end()
