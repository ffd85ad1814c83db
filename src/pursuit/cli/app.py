"""The `pursuit` command, and what its subcommands share: flags that many take, and reading them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number
from pydantic import create_model

from pursuit.errors import SettingsError
from pursuit.settings import Job, Settings, job_from, merge, read_yaml, settings_from

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

READ_WITH = ("fields", "source_field", "train_on")  # how rows are read that are handed on
Flags = Annotated[Settings | None, Parameter(name="*")]


def flags_of(*names: str, **texts: str) -> Any:
    """Like `Flags`, but `--help` lists these settings alone. Others are still read, so that a command can say that it
    does not use them.

    Args:
        texts: what to say of a setting that means something else there than to a run.
    """
    changed: dict[str, Any] = {
        name: (Annotated[field.annotation, Parameter(show=name in names, help=texts.get(name))], field)
        for name, field in Settings.model_fields.items()
        if name not in names or name in texts
    }
    return Annotated[create_model("Settings", __base__=Settings, **changed) | None, Parameter(name="*")]


Folder = Annotated[Path | None, Parameter(help="Run folder: keeps everything, and can be gone on with.")]
Config = Annotated[Path | None, Parameter(help="YAML file with the same settings; flags override it.")]
Price = Annotated[float | None, Parameter(validator=Number(gte=0))]
Assignments = Annotated[
    list[str] | None, Parameter(name="--param", help="Parameters of the method: --param clusters=50 ridge=0.1")
]


def parse_parameters(assignments: list[str]) -> dict[str, Any]:
    """`clusters=50` → {"clusters": "50"}; types are checked by the method itself."""
    parameters = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise SettingsError(f"--param {assignment}: write it as name=value, such as clusters=50.")
        parameters[name.strip().replace("-", "_")] = value.strip()
    return parameters


def given(settings: Settings | None) -> dict[str, Any]:
    """Only what the person wrote on the command line."""
    return {} if settings is None else settings.model_dump(exclude_unset=True)


def read_job(config: Path | None) -> tuple[Job, dict[str, Any]]:
    """What a YAML file (or none) says of the subset, and its settings."""
    return job_from(read_yaml(config) if config else {})


def looked_at(values: dict[str, Any], files: Sequence[str] = ()) -> dict[str, Any]:
    """The same, once they are settings and all files are there: who mistyped one should not wait for torch first."""
    from pursuit.models.place import find_model
    from pursuit.pool.sources import refuse_missing

    settings = settings_from(values)
    refuse_missing([*settings.pool, *settings.target, *files])
    if settings.model:
        find_model(settings.model, ask=False).check_weights()
    return values


def resolve(
    run: Path | None, config: Path | None, settings: Settings | None, needs_run: bool = True
) -> tuple[Path, dict[str, Any]]:
    """The run folder, and the settings of YAML file and flags."""
    job, values = read_job(config)
    folder = run or job.run
    if folder is None and needs_run:
        raise SettingsError("name a run folder with --run: it keeps the gradients, so that nothing is computed twice.")
    return folder or Path(), looked_at(merge(values, given(settings)))
