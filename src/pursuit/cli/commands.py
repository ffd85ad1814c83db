"""What the commands do, once their flags are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pursuit.cli.app import READ_WITH
from pursuit.engine import engine_for
from pursuit.errors import DataError, RunError, SettingsError
from pursuit.export.formats import TrainerFormat
from pursuit.export.subset import Result, publish, written
from pursuit.files import refuse_overwriting, refuse_unwritable
from pursuit.pool import Pool, check_subset_path, check_table
from pursuit.run.export import export_selection, export_subset
from pursuit.run.jobs import Share, extract_share
from pursuit.run.run import Run
from pursuit.selectors import describe, method, parse_budget
from pursuit.store.features import Features

output = Console()


def select_from_run(
    folder: Path, settings: Mapping[str, Any], name: str, budget: str | float, parameters: Mapping[str, Any],
    out: Path | None, *, drop_sources: Sequence[str] = (), drop_leaks: bool = False,
) -> None:  # fmt: skip
    """`pursuit select --run`."""
    with Run(folder, **settings) as run:
        show(run.select(
            name, budget, seed=settings.get("seed"), out=out, drop_sources=drop_sources, drop_leaks=drop_leaks,
            **parameters,
        ))  # fmt: skip


def select_from_arrays(
    name: str, budget: str | float, features: Path, target: Path | None, parameters: Mapping[str, Any],
    out: Path | None, settings: Mapping[str, Any],
) -> None:  # fmt: skip
    """`pursuit select --features`: no model; with --pool its rows are copied, otherwise the subset holds indices."""
    used = {"pool", "fields", "source_field", "seed", "engine", "ray_address", "workers"}
    if unused := sorted(set(settings) - used):
        raise SettingsError(f"{', '.join(unused)}: not used with --features, which brings its own gradients.")
    selector = method(name, **parameters)
    if selector.needs_target and target is None:
        raise SettingsError(f"{name} needs a target: --target-features FILE.npy, of the same dimension.")
    if out is None:
        raise SettingsError("--out is needed with --features: the subset's file, chosen.jsonl for example.")
    subset = check_subset_path(out)
    array = load_array(features)
    count = parse_budget(budget, len(array))
    reading = {name: settings[name] for name in ("fields", "source_field") if name in settings}
    pool = Pool(settings["pool"], **reading) if settings.get("pool") else None  # no row is skipped: each has features
    if pool is not None:
        refuse_overwriting(written(subset), [source.path for source in pool.sources])
        check_table(pool, subset)
    refuse_unwritable(written(subset))
    if pool is not None and pool.count_rows() != len(array):
        raise DataError(f"{features} has {len(array):,} rows but the pool has {pool.count_rows():,}.")
    sources = None if pool is None else [example.source for example in pool]
    given, goal = Features.from_array(array, sources=sources), None
    if target is not None:
        wanted = load_array(target)
        goal = Features.from_array(wanted, sources=["target"] * len(wanted))
    seed = settings.get("seed", 0)
    engine = engine_for(
        settings.get("engine", "local"), address=settings.get("ray_address"), workers=settings.get("workers"),
        device="cpu", folder=subset.parent.absolute(),
    )  # fmt: skip
    try:
        selection = selector.select(given.on(engine), count, target=goal, seed=seed)
    finally:
        engine.close()
    about = {"method": name, "parameters": dict(selection.parameters), "seed": seed, "features": str(features)}
    show(publish(selection, given, pool, subset, settings=about))


def load_array(path: Path) -> np.ndarray:
    """An (N, d) or (N, T, d) array from a .npy file, memory-mapped; pickled objects are refused.

    Raises:
        DataError: it is another kind of file, or an array of another shape.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}).", path=str(path)) from error
    except (ValueError, EOFError) as error:
        raise DataError("not a .npy file of numbers, as numpy.save writes it.", path=str(path)) from error
    if not isinstance(array, np.ndarray):  # an .npz archive
        what = "is an archive of arrays (.npz); save the one with the features alone, by numpy.save."
        raise DataError(what, path=str(path))
    if array.ndim not in (2, 3) or 0 in array.shape:
        wanted = "(N, d) or (N, T, d) with at least one row"
        raise DataError(f"features must be {wanted}, not {array.shape}.", path=str(path))
    return array


def export_for_trainer(
    to: str, out: Path, run: Path | None, selection: str | None, subset: Path | None, settings: Mapping[str, Any]
) -> None:
    """`pursuit export`."""
    if subset is not None and selection is not None:
        raise SettingsError("--selection and --subset: give one of them.")
    if subset is None and run is None:
        raise SettingsError("name what to export: --run FOLDER with --selection NAME, or --subset FILE.")
    if unused := sorted(set(settings) - set(READ_WITH)):
        raise SettingsError(f"{', '.join(unused)}: not used by export, which takes {', '.join(READ_WITH)}.")
    source = None if run is None else Run(run, **settings)
    if subset is None:
        assert source is not None  # checked above
        done = export_selection(source, selection, cast(TrainerFormat, to), out)
    else:
        given = settings if source is None else {name: getattr(source.settings, name) for name in READ_WITH}
        done = export_subset(subset, cast(TrainerFormat, to), out, **given)
    output.print(Text.assemble((f"{done.count:,} rows  ", "bold"), str(done.path)))
    for note in done.notes:
        output.print(Text(note), soft_wrap=True)


def warm_up(folder: Path, settings: Mapping[str, Any]) -> None:
    """`pursuit warmup`."""
    trajectory = Run(folder, **settings).warmup()
    for point, weight in zip(trajectory.checkpoints, trajectory.weights(), strict=True):
        output.print(f"step {point.step}: loss {point.loss:.3f}, weight {weight:.3f}, {point.folder}")


def extract_features(folder: Path, settings: Mapping[str, Any], append: list[str] | None, shard: str | None) -> None:
    """`pursuit extract`."""
    if shard is not None:
        if append:
            raise SettingsError("--shard and --append: append first (`pursuit extract --append …`), or as one job.")
        share = Share.parse(shard)
        missing = extract_share(folder, share, changes=settings)
        left = f"{missing:,} shards of other jobs are missing" if missing else "all shards are there"
        output.print(f"job {share} is done; {left} in {folder}")
        return
    with Run(folder, **settings) as run:
        features = run.extract(append=append or None)
    shape = f"{features.num_rows:,} rows × {features.num_checkpoints} checkpoints × {features.dimension:,} numbers"
    output.print(f"{shape} in {folder}")


def write_report_again(
    folder: Path,
    selection: str | None,
    agreement: bool,
    price_per_hour: float | None,
    currency: str,
    out: Path | None,
) -> None:
    """`pursuit report`."""
    if not (folder / "settings.json").exists():
        raise RunError(f"{folder}: no run is in this folder.")
    with Run(folder) as run:
        page = run.report(selection, agreement=agreement, price_per_hour=price_per_hour, currency=currency, out=out)
    output.print(Text.assemble(("report  ", "bold"), str(page)))


def show(result: Result) -> None:
    """The overview and where everything lies."""
    output.print(result.summary)
    for label, path in (("subset", result.subset), ("why", result.table), ("report", result.report)):
        output.print(Text.assemble((f"{label:8}", "bold"), str(path)))


def print_methods() -> None:
    """`pursuit methods`."""
    for entry in describe():
        output.print(Text.assemble((entry.name, "bold"), "  ", entry.summary))
        target = ", needs a target" if entry.needs_target else ""
        output.print(Text(f"  {entry.paper}{target}", style="dim"))
        if entry.parameters:
            table = Table(box=None, padding=(0, 2, 0, 2))
            for title in ("parameter", "default", "accepts", "meaning"):
                table.add_column(title, overflow="fold")
            for parameter in entry.parameters:
                table.add_row(parameter.name, str(parameter.default), parameter.accepted, parameter.description)
            output.print(table)
        output.print()
