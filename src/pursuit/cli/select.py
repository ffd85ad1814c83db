"""`pursuit select | run | methods | export`: choosing a subset, and handing it on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pursuit.cli.app import (
    READ_WITH,
    Assignments,
    Config,
    Flags,
    Folder,
    app,
    flags_of,
    given,
    looked_at,
    parse_parameters,
    read_job,
)
from pursuit.errors import SettingsError
from pursuit.settings import Job, Settings, merge

if TYPE_CHECKING:
    ReadingFlags = Flags
else:
    ReadingFlags = flags_of(*READ_WITH)
Quotas = Annotated[
    list[str] | None, Parameter(name="--quota", help="Shares of the budget for several targets: --quota mmlu=2 bbh=1; "
                                "a method says in `pursuit methods` what it does without.")
]  # fmt: skip
DropSources = Annotated[
    list[str] | None, Parameter(name="--drop-source", help="Sources of the pool to leave out; nothing is computed "
                                "again.")
]  # fmt: skip
DropLeaks = Annotated[
    bool | None, Parameter(name="--drop-leaks", help="Leave out rows that stand in the target set. Without it they are "
                           "only told of.")
]  # fmt: skip


@app.command
def select(
    *, method: str | None = None, budget: str | None = None, run: Folder = None, out: Path | None = None,
    param: Assignments = None, quota: Quotas = None, drop_source: DropSources = None, drop_leaks: DropLeaks = None,
    features: Annotated[Path | None, Parameter(name="--features")] = None, target_features: Path | None = None,
    config: Config = None, settings: Flags = None,
) -> None:  # fmt: skip
    """Choose a subset, doing first whatever is not there yet: encoding, warm-up, gradients.

    Writes the chosen rows as they stand in the pool, a table beside them (why each was chosen), and a report.

    Args:
        method: See `pursuit methods`; tagcos if not given.
        budget: How many to choose: 5%, 0.05, or a number of rows; 5% if not given.
        out: The subset, .jsonl (also .gz, .zst) or .parquet; a sidecar table and report.html lie beside it.
        features: Your own features instead of a model and a pool: a .npy file of (N, d) or (N, T, d).
        target_features: The target's features in the same form.
    """
    job, values = read_job(config)
    job = _with_flags(job, method, budget, run, out, param, quota, drop_source, drop_leaks)
    if features is None:
        if target_features is not None:
            raise SettingsError("--target-features: only used with --features; a run's target is --target FILE.")
        _select(job, values, settings)
        return
    if job.drop_sources or job.drop_leaks or job.run:
        raise SettingsError("--run, --drop-source and --drop-leaks: not used with --features, which stand alone.")
    from pursuit.cli.commands import select_from_arrays

    select_from_arrays(
        job.method, job.budget, features, target_features, job.params, job.out, merge(values, given(settings))
    )


@app.command(name="run")
def run_file(
    config: Path, /, *, method: str | None = None, budget: str | None = None, run: Folder = None,
    out: Path | None = None, param: Assignments = None, quota: Quotas = None, drop_source: DropSources = None,
    drop_leaks: DropLeaks = None, settings: Flags = None,
) -> None:  # fmt: skip
    """Everything from a YAML file: the settings, and method, params, budget, run, out, drop_sources, drop_leaks.

    Flags override it.

    Args:
        config: The YAML file.
        method: See `pursuit methods`.
        budget: How many to choose: 5%, 0.05, or a number of rows.
        out: The subset's file.
    """
    job, values = read_job(config)
    _select(_with_flags(job, method, budget, run, out, param, quota, drop_source, drop_leaks), values, settings)


def _with_flags(
    job: Job, method: str | None, budget: str | None, run: Path | None, out: Path | None, param: list[str] | None,
    quota: list[str] | None, drop_source: list[str] | None, drop_leaks: bool | None,
) -> Job:  # fmt: skip
    """What a YAML file says of the subset, with flags over it."""
    flags = {
        "method": method, "budget": budget, "run": run, "out": out, "drop_sources": drop_source,
        "drop_leaks": drop_leaks,
    }  # fmt: skip
    params = job.params if method in (None, job.method) else {}  # another method has parameters of its own
    parameters = {**params, **parse_parameters(param or [])}
    if quota:
        _check_takes_quotas(method or job.method)
        parameters["quotas"] = ",".join(quota)
    return job.model_copy(
        update={"params": parameters, **{key: value for key, value in flags.items() if value is not None}}
    )


def _check_takes_quotas(name: str) -> None:
    from pursuit.selectors import describe

    takes = {entry.name: any(parameter.name == "quotas" for parameter in entry.parameters) for entry in describe()}
    if not takes.get(name, True):  # a name that is not known is told of elsewhere
        usable = ", ".join(other for other in takes if takes[other])
        raise SettingsError(f"--quota: is for methods that follow a target ({usable}); {name} takes none.")


def _select(job: Job, values: dict[str, Any], settings: Settings | None) -> None:
    if job.run is None:
        raise SettingsError(
            "name a run folder (--run runs/x, or run: runs/x in YAML): it keeps the gradients, so that nothing is "
            "computed twice."
        )
    values = looked_at(merge(values, given(settings)))
    from pursuit.selectors import check_budget, method

    method(job.method, **job.params)  # a wrong name or parameter is found before a run folder is made
    check_budget(job.budget)
    from pursuit.cli.commands import select_from_run

    select_from_run(
        job.run, values, job.method, job.budget, job.params, job.out,
        drop_sources=job.drop_sources, drop_leaks=job.drop_leaks,
    )  # fmt: skip


@app.command
def methods() -> None:
    """Every method with its parameters, their defaults, and where it comes from."""
    from pursuit.cli.commands import print_methods

    print_methods()


@app.command
def export(
    *, to: str, out: Path, run: Folder = None, selection: str | None = None, subset: Path | None = None,
    settings: ReadingFlags = None,
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
    from pursuit.cli.commands import export_for_trainer

    export_for_trainer(to, out, run, selection, subset, given(settings))
