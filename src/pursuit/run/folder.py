"""The run folder: its settings, and who is using it."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pursuit.errors import RunError, StoreError
from pursuit.files import make_folder, read_json, write_json
from pursuit.run.timings import Timings, added_up
from pursuit.settings import LATER, Settings, differences, merge, settings_from


@dataclass(frozen=True)
class Part:
    """Rows that came into the run together: those it began with (number 0), or some that were appended.

    Attributes:
        paths: the pool's files.
        encoded, features, embeddings: folders of tokens, of gradient features, and of the base model's embeddings.
    """

    number: int
    paths: list[str]
    encoded: Path
    features: Path

    @property
    def embeddings(self) -> Path:
        """Beside the features."""
        return self.features.with_name("embeddings")

    @property
    def name(self) -> str:
        """Short and unique in the run."""
        return f"part-{self.number:02d}"


class RunFolder:
    """One folder on disk; results of stages lie in folders inside it.

    Args:
        path: the folder, made when first written to.

    Attributes:
        encoded, warmup, features, targets, selections: where each stage's results lie; directions: a file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.encoded, self.warmup, self.features = self.path / "encoded", self.path / "warmup", self.path / "features"
        self.targets, self.selections = self.path / "targets", self.path / "selections"
        self.directions = self.path / "directions.safetensors"
        self._timings: dict[str, Timings] = {}
        self.lock_handle: int | None = None  # file descriptor of the lock, while it is held

    def parts(self, pool: list[str]) -> list[Part]:
        """The run's own pool, and what was appended, in order."""
        path = self.path / "parts.json"
        appended = read_json(path) if path.exists() else []
        more = [self.part(number, paths) for number, paths in enumerate(appended, start=1)]
        if self.part(len(more) + 1, []).features.exists():  # made only of what has joined
            raise StoreError(
                f"{path}: is missing or damaged: it names {len(more)} appended parts, and {self.path / 'parts'} has "
                "more. Put it back, or choose another run folder."
            )
        return [Part(0, pool, self.encoded, self.features), *more]

    def part(self, number: int, paths: list[str]) -> Part:
        """An appended part, whether or not it has joined the run already."""
        folder = self.path / "parts" / f"{number:02d}"
        return Part(number, paths, folder / "encoded", folder / "features")

    def append(self, part: Part, on_bad_row: str) -> None:
        """From now on it belongs to the run, and its bad rows are skipped or an error; called when its tokens stand."""
        self._store({"on_bad_row": on_bad_row})
        write_json(self.path / "parts.json", [*(other.paths for other in self.parts([])[1:]), part.paths])

    def resolve(self, changes: Mapping[str, Any]) -> Settings:
        """The run's settings: those stored here, with `changes` over them.

        Raises:
            RunError: a change would not fit what is stored here; each one is named.
            SettingsError: an unknown key or a value that cannot be accepted.
        """
        path = self.path / "settings.json"
        if not path.exists():
            settings = settings_from(changes)
            if not settings.model or not settings.pool:
                lacking = "--model" if not settings.model else "--pool"
                raise RunError(f"{self.path}: a new run needs {lacking} (there is no run in this folder yet).")
            return settings
        stored = read_json(path)
        settled = {key: value for key, value in changes.items() if (key, value) != ("dtype", "auto")}
        settings = settings_from(merge(stored, settled))
        # a setting that is younger than the run has its default there
        before, now = settings_from(stored).model_dump(mode="json"), settings.model_dump(mode="json")
        free = [*(LATER if self._only_tokens() else ()), *(["on_bad_row"] if before["on_bad_row"] == "error" else [])]
        if changed := differences(before, now, free=free):
            raise RunError(
                f"{self.path}: this run was begun with other settings.\n  " + "\n  ".join(changed)
                + "\nLeave them out to go on with this run, or choose another --run folder."
            )  # fmt: skip
        return settings

    def begun_target(self) -> list[str]:
        """The target's files that the run began with."""
        return list(read_json(self.path / "settings.json")["target"])

    def begin(self, settings: Settings) -> None:
        """Store the settings: from now on the folder is theirs. Called when the first stage has succeeded with them.

        Those of later stages may change until one of them has begun.
        """
        path, now = self.path / "settings.json", settings.model_dump(mode="json")
        if not path.exists():
            write_json(path, now)
            return
        if self._only_tokens():
            self._store({name: now[name] for name in LATER})

    def _store(self, values: Mapping[str, Any]) -> None:
        stored = read_json(self.path / "settings.json")
        if any(stored.get(name) != value for name, value in values.items()):
            write_json(self.path / "settings.json", stored | values)

    def _only_tokens(self) -> bool:
        """Whether nothing stands, or is begun, that hangs on more than the rows' tokens."""
        begun = (self.warmup / "warmup.json", self.features, self.path / "embeddings")
        return not any(path.exists() for path in begun)

    @contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the folder for this process; the lock goes with the process, however it ends.

        Args:
            shared: with others that hold it so; for jobs that do different parts of the work.

        Raises:
            RunError: another process holds it (named).
        """
        make_folder(self.path)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        with open(self.path / "lock", "a+") as handle:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                raise RunError(
                    f"{self.path}: in use by {handle.read().strip() or 'another process'}. "
                    "Wait for it, stop it, or choose another --run folder."
                ) from error
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {platform.node()}")
            handle.flush()
            self.lock_handle = handle.fileno()
            try:
                yield
            finally:
                self.lock_handle = None

    def timed(self, stage: str, job: str = "", *, stood: bool = False) -> AbstractContextManager[None]:
        """Add the seconds of a stage to what earlier, interrupted starts took, also when this one is interrupted.

        Args:
            job: of several jobs at once each keeps a file of its own.
            stood: the stage was finished before: that it is looked at again is not counted.
        """
        return nullcontext() if stood else self._timings.setdefault(job, Timings(self.path, job)).of(stage)

    def timings(self) -> dict[str, float]:
        """Seconds of each stage so far; those of jobs that ran side by side are added up."""
        return added_up(self.path)
