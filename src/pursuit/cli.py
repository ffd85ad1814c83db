"""The command line: `pursuit inspect | select | export | warmup | extract | run | methods`."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError
from rich.console import Console

from pursuit.errors import PursuitError, SettingsError
from pursuit.settings import Settings, explain, merge, read_yaml

app = App(
    name="pursuit",
    help="""Choose the few percent of an instruction-tuning data set that teach a model most, by their gradients.

Begin with what will be learnt from, then choose:

    pursuit inspect --model M --pool a.jsonl
    pursuit select --model M --pool a.jsonl --method tagcos --budget 5% --run runs/x --out subset.jsonl

A run folder keeps tokens, warm-up and gradients: another method or budget on the same folder takes seconds, and
whatever was interrupted goes on where it stopped when the same command is started again.""",
    default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # `main` says that nothing is lost
)

Flags = Annotated[Settings | None, Parameter(name="*")]
Folder = Annotated[Path | None, Parameter(help="Run folder: keeps everything, and can be gone on with.")]
Config = Annotated[Path | None, Parameter(help="YAML file with the same settings; flags override it.")]
Assignments = Annotated[
    list[str] | None, Parameter(name="--param", help="Parameters of the method: --param clusters=50 ridge=0.1")
]


@app.command
def select(
    *, method: str = "tagcos", budget: str = "5%", run: Folder = None, out: Path | None = None,
    param: Assignments = None, features: Annotated[Path | None, Parameter(name="--features")] = None,
    target_features: Path | None = None, config: Config = None, settings: Flags = None,
) -> None:  # fmt: skip
    """Choose a subset, doing first whatever is not there yet: encoding, warm-up, gradients.

    Writes the chosen rows as they stand in the pool, a table beside them (why each was chosen), and a report.

    Args:
        method: see `pursuit methods`.
        budget: How many to choose: 5%, 0.05, or a number of rows.
        out: The subset, .jsonl (also .gz, .zst) or .parquet; a sidecar table and report.html lie beside it.
        features: Your own features instead of a model and a pool: a .npy file of (N, d) or (N, T, d).
        target_features: The target's features in the same form.
    """
    from pursuit.commands import select_from_arrays, select_from_run

    parameters = parse_parameters(param or [])
    if features is not None:
        select_from_arrays(method, budget, features, target_features, parameters, out, _given(settings))
    else:
        folder, values = _resolve(run, config, settings)
        select_from_run(folder, values, method, budget, parameters, out)


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

    export_for_trainer(to, out, run, selection, subset, _given(settings))


@app.command
def inspect(*, run: Folder = None, config: Config = None, examples: int = 3, measure: bool = True,
            settings: Flags = None) -> None:  # fmt: skip
    """Show what will be learnt from, before any heavy work.

    Rendered examples with the response tokens marked, lengths, truncation, duplicates, sources, refused rows, and the
    hours, gigabytes and memory that the run will take.

    Args:
        examples: How many rendered examples to show.
        measure: Time a few batches on the model to predict the hours.
    """
    from pursuit.inspection import inspect_pool

    folder, values = _resolve(run, config, settings, needs_run=False)
    inspect_pool(folder, values, examples, measure)


@app.command
def warmup(*, run: Folder = None, config: Config = None, settings: Flags = None) -> None:
    """The first stage alone: train briefly on a random part of the pool and keep the checkpoints."""
    from pursuit.commands import stage

    stage("warmup", *_resolve(run, config, settings))


@app.command
def extract(*, run: Folder = None, config: Config = None, settings: Flags = None) -> None:
    """The second stage alone: the gradient features of every row at every checkpoint."""
    from pursuit.commands import stage

    stage("extract", *_resolve(run, config, settings))


@app.command(name="run")
def run_file(config: Path, /, *, method: str | None = None, budget: str | None = None, run: Folder = None,
             out: Path | None = None, param: Assignments = None, settings: Flags = None) -> None:  # fmt: skip
    """Everything from a YAML file: the settings, and method, params, budget, run, out. Flags override it.

    Args:
        config: The YAML file.
        method: See `pursuit methods`.
        budget: How many to choose: 5%, 0.05, or a number of rows.
        out: The subset's file.
    """
    from pursuit.commands import select_from_run

    values = read_yaml(config)
    job: dict[str, Any] = {key: values.pop(key, None) for key in ("method", "budget", "run", "out", "params")}
    given = {"method": method, "budget": budget, "run": run, "out": out}
    job |= {key: value for key, value in given.items() if value is not None}
    parameters = {**(job["params"] or {}), **parse_parameters(param or [])}
    if not job["run"]:
        raise SettingsError(f"{config}: name a run folder (run: runs/x, or --run runs/x).")
    out_path = Path(job["out"]) if job["out"] else None
    select_from_run(
        Path(job["run"]), merge(values, _given(settings)), job["method"] or "tagcos", job["budget"] or "5%", parameters,
        out_path,
    )  # fmt: skip


@app.command
def methods() -> None:
    """Every method with its parameters, their defaults, and where it comes from."""
    from pursuit.commands import print_methods

    print_methods()


def parse_parameters(assignments: list[str]) -> dict[str, Any]:
    """`clusters=50` → {"clusters": "50"}; types are checked by the method itself."""
    parameters = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise SettingsError(f"--param {assignment}: write it as name=value, such as clusters=50.")
        parameters[name.strip().replace("-", "_")] = value.strip()
    return parameters


def _given(settings: Settings | None) -> dict[str, Any]:
    """Only what the person wrote on the command line."""
    return {} if settings is None else settings.model_dump(exclude_unset=True)


def _resolve(
    run: Path | None, config: Path | None, settings: Settings | None, needs_run: bool = True
) -> tuple[Path, dict[str, Any]]:
    values = read_yaml(config) if config else {}
    job = {key: values.pop(key, None) for key in ("run", "method", "budget", "out", "params")}
    folder = run or (Path(job["run"]) if job["run"] else None)
    if folder is None and needs_run:
        raise SettingsError("name a run folder with --run: it keeps the gradients, so that nothing is computed twice.")
    return folder or Path(), merge(values, _given(settings))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `pursuit` command: errors of pursuit's own are shown without a traceback."""
    errors = Console(stderr=True)
    _quiet_libraries()
    try:
        app(arguments, exit_on_error=False, print_error=False, error_console=errors)
    except PursuitError as error:
        _fail(errors, str(error))
    except ValidationError as error:
        _fail(errors, explain(error, Settings))
    except CycloptsError as error:
        cause = error.__cause__
        _fail(errors, explain(cause, Settings) if isinstance(cause, ValidationError) else str(error))
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on where it was.")
        sys.exit(130)


def _quiet_libraries() -> None:
    """Our own progress is enough: no bars of loading weights, no notices to the libraries' developers."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if Path(__file__).parent in Path(filename).parents:  # a notice to the user, not to a programmer
            Console(stderr=True).print(f"note: {message}", markup=False, highlight=False, soft_wrap=True)
        else:
            shown(message, category, filename, *rest)

    warnings.showwarning = show  # type: ignore[assignment]


def _fail(console: Console, message: str) -> None:
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
