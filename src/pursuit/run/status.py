"""What stands in a run folder and what is missing, read from its files alone: no model, no lock, nothing changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table

from pursuit.errors import RunError, SettingsError, StoreError
from pursuit.files import read_json
from pursuit.run.folder import Part, RunFolder
from pursuit.run.saved import described
from pursuit.settings import Settings
from pursuit.store.features import FeatureStore


@dataclass(frozen=True)
class PartStatus:
    """How far the gradients of one part are.

    Attributes:
        rows: encoded rows, None while they are not.
        units: (checkpoint, shard) pairs that there will be, None before the first job.
        missing: those of them that are not there (or are damaged, where that was looked at).
    """

    name: str
    rows: int | None
    units: int | None
    missing: list[tuple[int, int]]
    shards: int = 0


@dataclass(frozen=True)
class RunStatus:
    """What stands in a run folder.

    Attributes:
        parts: the pool that the run began with, then what was appended.
        directions: of the file of directions, "" for a run without, else "there", "not yet" or "damaged".
        checkpoints: steps of the finished checkpoints; `warmed_up` whether all planned ones are there.
        targets, selections: names of their folders.
        jobs: numbers of the jobs (of `of`) whose shards are not all there.
    """

    folder: Path
    parts: list[PartStatus]
    checkpoints: list[int]
    warmed_up: bool
    targets: list[str]
    selections: list[str]
    of: int | None = None
    jobs: list[int] = field(default_factory=list)
    directions: str = ""


def status(folder: str | Path, *, of: int | None = None, verify: bool = False) -> RunStatus:
    """Look at a run folder, also while others work in it.

    Args:
        of: how many jobs share the extraction (`--shard i/of`): also says which have to be started again.
        verify: read every shard and the directions and compare their digests; otherwise a file that is there counts.

    Raises:
        RunError: there is no run in the folder.
        SettingsError: `of` is below 1.
    """
    if of is not None and of < 1:
        raise SettingsError(f"--of {of}: the number of jobs that share the extraction, 1 or more.")
    run = RunFolder(folder)
    if not (run.path / "settings.json").exists():
        raise RunError(f"{run.path}: no run is in this folder.")
    settings = run.resolve({})
    planned = read_json(run.warmup / "warmup.json")["checkpoint_steps"] if (run.warmup / "warmup.json").exists() else []
    steps = sorted(read_json(path)["step"] for path in run.warmup.glob("checkpoint-*/checkpoint.json"))
    parts = [_part(part, settings, len(steps), verify) for part in run.parts(settings.pool)]
    return RunStatus(
        run.path, parts, steps, bool(planned) and steps == list(planned), _names(run.targets), _names(run.selections),
        of, [] if of is None else _jobs(parts, of), _directions(run, settings, verify),
    )  # fmt: skip


def _directions(run: RunFolder, settings: Settings, verify: bool) -> str:
    if not settings.features.directions:
        return ""
    if not run.directions.exists():
        return "not yet"
    if verify:
        from pursuit.gradients.directions import read_directions  # with torch: not for a look alone

        try:
            read_directions(str(run.directions))
        except StoreError:
            return "damaged"
    return "there"


def _part(part: Part, settings: Settings, checkpoints: int, verify: bool) -> PartStatus:
    manifest = part.encoded / "manifest.json"
    rows = read_json(manifest)["count"] if manifest.exists() else None
    try:
        store = FeatureStore(part.features)
    except StoreError:
        shards = 0 if rows is None else -(-rows // settings.feature_recipe().rows_a_shard(rows))
        everything = [(checkpoint, shard) for checkpoint in range(checkpoints) for shard in range(shards)]
        return PartStatus(part.name, rows, None, everything, shards)
    missing = store.missing() if verify else store.absent()
    return PartStatus(part.name, rows, store.num_checkpoints * store.num_shards, missing, store.num_shards)


def _jobs(parts: list[PartStatus], of: int) -> list[int]:
    """Shards are dealt out over all parts in turn, as `Stages.extract_share` does."""
    first, jobs = 0, set()
    for part in parts:
        jobs |= {(first + shard) % of + 1 for _, shard in part.missing}
        first += part.shards
    return sorted(jobs)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.is_dir())


def table(found: RunStatus) -> Table:
    """For the terminal."""
    rows = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for part in found.parts:
        label = "" if len(found.parts) == 1 else f" {part.name}"
        rows.add_row(f"tokens{label}", "not yet" if part.rows is None else f"{part.rows:,} rows")
    steps = ", ".join(map(str, found.checkpoints))
    rows.add_row("warm-up", f"{'finished' if found.warmed_up else 'not finished'}; checkpoints at steps {steps or '–'}")
    if found.directions:
        again = ": delete the file, and start the run again" if found.directions == "damaged" else ""
        rows.add_row("directions", f"{found.directions}{again}")
    for part in found.parts:
        label = "" if len(found.parts) == 1 else f" {part.name}"
        rows.add_row(f"gradients{label}", _progress(part))
    if found.jobs:
        rows.add_row("", f"jobs to start again: {', '.join(f'{job}/{found.of}' for job in found.jobs)}")
    rows.add_row("targets", ", ".join(found.targets) or "–")
    for number, name in enumerate(found.selections):
        rows.add_row("" if number else "selections", f"{name}: {described(found.folder / 'selections' / name)}")
    if not found.selections:
        rows.add_row("selections", "–")
    return rows


def _progress(part: PartStatus) -> str:
    if part.units is None:
        return "not begun"
    if not part.missing:
        return f"all {part.units:,} shards"
    shown = ", ".join(f"{shard} at checkpoint {checkpoint}" for checkpoint, shard in part.missing[:5])
    more = f" and {len(part.missing) - 5:,} more" if len(part.missing) > 5 else ""
    return f"{part.units - len(part.missing):,} of {part.units:,} shards; missing: shard {shown}{more}"
