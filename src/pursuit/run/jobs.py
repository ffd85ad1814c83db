"""Gradients by several processes into one store: jobs of an array on any machines, or one process a device on this one.

    pursuit extract --run runs/x --shard 3/16        # independent jobs, in any order
    pursuit extract --run runs/x --devices cuda:0,cuda:1

Which shard is whose follows from its number alone, and a shard's content from its rows, so it does not matter how many
jobs there are, which of them die, or which are started twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pursuit.encoding import EncodedPool
from pursuit.errors import PursuitError, RunError, SettingsError, StoreError
from pursuit.progress import progress, say
from pursuit.recipes import Recipe
from pursuit.run.folder import RunFolder
from pursuit.run.stages import Stages
from pursuit.settings import Settings, settings_from
from pursuit.store.features import FeatureStore

LOOK_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class Share:
    """Job `number` of `of`, counted from 1; written 3/16."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """From "3/16"; a SettingsError for anything else."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise SettingsError(f"--shard {text}: write it as 3/16, the third of sixteen jobs.")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def extract_share(folder: str | Path, share: Share, *, changes: Mapping[str, Any] | None = None) -> int:
    """Do one job's shards of the gradient features, beside other jobs. Tokens and warm-up must stand.

    Args:
        changes: settings that may differ here, such as the device.

    Returns:
        how many (checkpoint, shard) units the store still lacks, of all jobs.

    Raises:
        RunError: there is no run, its warm-up is not finished, or a process holds the folder for itself.
    """
    run = RunFolder(folder)
    if not (run.path / "settings.json").exists():
        raise RunError(f"{run.path}: no run is in this folder yet. `pursuit warmup --run {run.path} …` begins one.")
    with run.locked(shared=True):
        return _extract_share(run, run.resolve(dict(changes or {})), share)


def _extract_share(run: RunFolder, settings: Settings, share: Share) -> int:
    stages = Stages(run, settings)
    try:
        with run.timed("features", job=f"{share.number}-of-{share.of}"):
            folders = stages.extract_share(share.number, share.of)
    except StoreError as error:
        if (run.warmup / "warmup.json").exists() and (run.directions.exists() or not settings.features.directions):
            raise
        raise RunError(f"{error}\nDo `pursuit warmup --run {run.path}` once before the jobs are started.") from error
    return sum(len(FeatureStore(store).absent()) for store in folders)


class OnDevices:
    """A `Fill`: a process for each of `settings.devices`, each with its share of the shards; small stores (targets) are
    left to the caller.
    """

    def __init__(self, run: RunFolder, settings: Settings) -> None:
        self.run, self.settings = run, settings

    def __call__(
        self, encoded: EncodedPool, folder: Path, recipe: Recipe, provenance: Mapping[str, Any], describe: str
    ) -> None:
        if self.run.targets in folder.parents:
            return
        of = len(self.settings.devices)
        started = [self._start(device, Share(number, of)) for number, device in enumerate(self.settings.devices, 1)]
        try:
            self._wait(folder, len(encoded) * self._checkpoints(), describe, started)
        finally:
            for _, process, _ in started:
                process.terminate()
            for _, process, _ in started:
                process.wait()

    def _start(self, device: str, share: Share) -> tuple[str, subprocess.Popen[bytes], Path]:
        log = self.run.path / "logs" / f"extract-{share.number}-of-{share.of}.log"
        log.parent.mkdir(exist_ok=True)
        settings = self.settings.model_copy(update={"device": device, "devices": []}).model_dump_json()
        command = [sys.executable, "-m", "pursuit.run.jobs", str(self.run.path), str(share), settings]
        lock = self.run.lock_handle  # inherited, so that the folder stays locked if only this process dies
        with open(log, "wb") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, pass_fds=[lock] if lock else [],
                env=environment(device, len(self.settings.devices)),
            )  # fmt: skip
        say(f"{device}: shards {share}, log in {log}")
        return device, process, log

    def _checkpoints(self) -> int:
        return len(list(self.run.warmup.glob("checkpoint-*/checkpoint.json")))

    def _wait(
        self, folder: Path, units: int, describe: str, started: list[tuple[str, subprocess.Popen[bytes], Path]]
    ) -> None:
        done = _rows_done(folder)
        with progress(describe, units, "rows", done=done) as advance:
            while any(process.poll() is None for _, process, _ in started):
                time.sleep(LOOK_EVERY_SECONDS)
                now = _rows_done(folder)
                advance(now - done)
                done = now
                for device, process, log in started:
                    if process.poll():
                        lines = log.read_text(errors="replace").strip().splitlines()
                        raise RunError(f"{device}: {lines[-1] if lines else 'stopped'}\nIts whole log is in {log}.")


def environment(device: str, processes: int) -> dict[str, str]:
    """Of one of the processes.

    Beside a GPU the cores only prepare its work, so they are shared: more threads than cores wait for each other. On a
    CPU each has as many as here, since other numbers of threads round otherwise.
    """
    if device.partition(":")[0] == "cpu":
        return dict(os.environ)
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)), **os.environ}


def _rows_done(folder: Path) -> int:
    if not (folder / "manifest.json").exists():
        return 0
    store = FeatureStore(folder)
    return store.num_rows * store.num_checkpoints - store.rows_left(store.absent())


def main() -> None:
    """`python -m pursuit.run.jobs RUN SHARE SETTINGS`: one process of `--devices`; whoever starts it holds the folder.

    The settings are those of the command, as JSON: it may have changed some that the run does not keep.
    """
    folder, share, settings = sys.argv[1:]
    try:
        _extract_share(RunFolder(folder), settings_from(json.loads(settings)), Share.parse(share))
    except PursuitError as error:
        print(str(error).replace("\n", " "), file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main()
