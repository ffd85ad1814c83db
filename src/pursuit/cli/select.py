"""`pursuit select | run | methods | export`: choosing a subset, and handing it on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pursuit.cli.app import JOB, Assignments, Config, Flags, Folder, app, given, parse_parameters, resolve
from pursuit.errors import SettingsError
from pursuit.settings import merge, read_yaml


@app.command
def select(
    *, method: str = "tagcos", budget: str = "5%", run: Folder = None, out: Path | None = None,
    param: Assignments = None, quota: list[str] | None = None, drop_source: list[str] | None = None,
    drop_leaks: bool = False, features: Annotated[Path | None, Parameter(name="--features")] = None,
    target_features: Path | None = None, config: Config = None, settings: Flags = None,
) -> None:  # fmt: skip
    """Choose a subset, doing first whatever is not there yet: encoding, warm-up, gradients.

    Writes the chosen rows as they stand in the pool, a table beside them (why each was chosen), and a report.

    Args:
        method: see `pursuit methods`.
        budget: How many to choose: 5%, 0.05, or a number of rows.
        out: The subset, .jsonl (also .gz, .zst) or .parquet; a sidecar table and report.html lie beside it.
        quota: Shares of the budget for several targets: --quota mmlu=2 bbh=1. Equal without, for gtp and omp.
        drop_source: Sources of the pool to leave out; nothing is computed again.
        drop_leaks: Leave out rows that stand in the target set. Without it they are only told of.
        features: Your own features instead of a model and a pool: a .npy file of (N, d) or (N, T, d).
        target_features: The target's features in the same form.
    """
    from pursuit.commands import select_from_arrays, select_from_run

    parameters = parse_parameters(param or [])
    if quota:
        parameters["quotas"] = ",".join(quota)
    if features is not None:
        if drop_source or drop_leaks:
            raise SettingsError("--drop-source and --drop-leaks need a run: --features brings no texts along.")
        select_from_arrays(method, budget, features, target_features, parameters, out, given(settings))
    else:
        folder, values = resolve(run, config, settings)
        select_from_run(
            folder, values, method, budget, parameters, out, drop_sources=drop_source or (), drop_leaks=drop_leaks
        )


@app.command(name="run")
def run_file(config: Path, /, *, method: str | None = None, budget: str | None = None, run: Folder = None,
             out: Path | None = None, param: Assignments = None, settings: Flags = None) -> None:  # fmt: skip
    """Everything from a YAML file: the settings, and method, params, budget, run, out, drop_sources, drop_leaks.

    Flags override it.

    Args:
        config: The YAML file.
        method: See `pursuit methods`.
        budget: How many to choose: 5%, 0.05, or a number of rows.
        out: The subset's file.
    """
    from pursuit.commands import select_from_run

    values = read_yaml(config)
    job: dict[str, Any] = {key: values.pop(key, None) for key in JOB}
    flags = {"method": method, "budget": budget, "run": run, "out": out}
    job |= {key: value for key, value in flags.items() if value is not None}
    parameters = {**(job["params"] or {}), **parse_parameters(param or [])}
    if not job["run"]:
        raise SettingsError(f"{config}: name a run folder (run: runs/x, or --run runs/x).")
    out_path = Path(job["out"]) if job["out"] else None
    select_from_run(
        Path(job["run"]), merge(values, given(settings)), job["method"] or "tagcos", job["budget"] or "5%", parameters,
        out_path, drop_sources=job["drop_sources"] or (), drop_leaks=bool(job["drop_leaks"]),
    )  # fmt: skip


@app.command
def methods() -> None:
    """Every method with its parameters, their defaults, and where it comes from."""
    from pursuit.commands import print_methods

    print_methods()


@app.command
def export(
    *, to: str, out: Path, run: Folder = None, selection: str | None = None, subset: Path | None = None,
    settings: Flags = None,
) -> None:  # fmt: skip
    """Write chosen rows in the form that a trainer reads, with their weights in the column `weight`.

    From a run folder, or from a subset with the table beside it. Says what to set in the trainer, so that it learns
    from the same tokens, and whether it uses the weights.

    Args:
        to: trl, llama-factory, axolotl, messages (JSONL) or parquet.
        out: The file, .jsonl (.parquet for parquet).
        selection: A selection of the run: a name in its folder `selections`, its beginning (tagcos), or a path; not
            needed where there is only one.
        subset: A file that `select` wrote, instead of --selection; --fields and --train-on as then, or --run to take
            them from there.
    """
    from pursuit.commands import export_for_trainer

    export_for_trainer(to, out, run, selection, subset, given(settings))
