"""`pursuit evaluate`: a model's scores on held-out rows and on benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pursuit.cli.app import Config, Flags, app, flags_of, given, parse_parameters
from pursuit.errors import RunError, SettingsError
from pursuit.settings import Settings, merge, read_yaml, settings_from

if TYPE_CHECKING:
    from torch import nn

    from pursuit.evaluate.plan import Plan

# the settings that say how a model and rows are read; the others belong to a selection
USED = (
    "model", "adapter", "revision", "trust_remote_code", "dtype", "device", "attention", "load_in_4bit",
    "fields", "source_field", "on_bad_row", "max_length", "chat_template", "train_on",
)  # fmt: skip
if TYPE_CHECKING:
    UsedFlags = Flags
else:
    UsedFlags = flags_of(
        *USED, adapter="A trained adapter to put on the model: PEFT's folder, or what `finetune` left."
    )
Names = Annotated[list[str] | None, Parameter(consume_multiple=True)]


@app.command
def evaluate(
    *, eval: Names = None, metrics: Names = None, run: Path | None = None, out: Path | None = None,
    scorer: Names = None, player: Names = None, max_new_tokens: int | None = None, first_line: bool = False,
    ignore_case: bool = False, batch_tokens: int | None = None, lm_eval: Names = None,
    lm_eval_param: Names = None, config: Config = None, settings: UsedFlags = None,
) -> None:  # fmt: skip
    """Score a model on held-out rows: loss, exact match, multiple choice, your own functions, and lm-eval's tasks.

        pursuit evaluate --model M --adapter tuned/ --eval heldout.jsonl --metrics loss,exact,choice --out scores/

    Scores are given over all rows, as the mean of families (`source`), and for each family, with 95 % intervals. With
    --out, what is finished is kept and not computed again for the same weights, rows and settings.

    Args:
        eval: Held-out rows, in any form that a pool can have; for choice with `options` and `answer`.
        metrics: loss, exact, choice; separated by commas. loss,exact if not given.
        run: A run folder to take model, template and truncation from.
        out: Folder for evaluation.json and examples.parquet (a value for every row).
        scorer: package.module:function of (prompt turns, response, the row) to a number; name=… gives it a name.
        player: package.module:function of (respond, rows) to a number for each row, such as games won.
        max_new_tokens: The longest response; the reference's length and 16 more if not given.
        first_line: A response ends at its first line break (for models that do not know how to stop).
        ignore_case: Exact match does not mind upper and lower case.
        batch_tokens: Padded tokens in memory at once; 8192 on a CPU and 32768 on a GPU if not given.
        lm_eval: Tasks of lm-eval, separated by commas, or YAML files of your own; needs `pip install lm-eval`.
        lm_eval_param: Options of lm_eval.simple_evaluate: limit=100 num_fewshot=5 apply_chat_template=true.
    """
    values = merge(read_yaml(config) if config else {}, given(settings))
    if unused := sorted(set(values) - set(USED)):
        raise SettingsError(f"{', '.join(unused)}: not used by evaluate.")
    from pursuit.pool.sources import refuse_missing

    refuse_missing(eval or [])  # before torch is imported
    plan = _plan(metrics, bool(eval), scorer, player, lm_eval, lm_eval_param, batch_tokens,
                 (max_new_tokens, first_line, ignore_case))  # fmt: skip
    _evaluate(_settings(run, values), eval or [], plan, out)


def _settings(run: Path | None, values: dict[str, Any]) -> Settings:
    """The settings to read model and rows with: a run's, with what was given over them."""
    from pursuit.run.folder import RunFolder

    stored: dict[str, Any] = {}
    if run is not None:
        if not (run / "settings.json").exists():
            raise RunError(f"{run}: there is no run in this folder; give --model instead.")
        stored = {name: value for name, value in RunFolder(run).resolve({}).model_dump().items() if name in USED}
    settings = settings_from(merge(stored, values))
    if settings.model is None:
        raise SettingsError("name what to evaluate: --model M, or --run with a run folder to take it from.")
    return settings


def _plan(
    metrics: list[str] | None, has_rows: bool, scorer: list[str] | None, player: list[str] | None,
    lm_eval: list[str] | None, lm_eval_param: list[str] | None, batch_tokens: int | None,
    generation: tuple[int | None, bool, bool],
) -> Plan:  # fmt: skip
    """What to compute; names and functions are checked here, before anything is loaded."""
    import yaml

    from pursuit.evaluate import GenerationSettings, named_functions
    from pursuit.evaluate.plan import Plan

    wanted = _split(metrics) if metrics is not None else ["loss", "exact"] if has_rows else []
    options = {name: yaml.safe_load(value) for name, value in parse_parameters(lm_eval_param or []).items()}
    plan = Plan(
        tuple(wanted), named_functions(scorer or ()), named_functions(player or ()), GenerationSettings(*generation),
        batch_tokens, tuple(_split(lm_eval)), options,
    )  # fmt: skip
    plan.check(has_rows)
    return plan


def _evaluate(settings: Settings, paths: list[str], plan: Plan, out: Path | None) -> None:
    from rich.console import Console

    from pursuit.evaluate import read_eval_set
    from pursuit.evaluate.evaluation import carry_out
    from pursuit.evaluate.result import EXAMPLES, RESULT
    from pursuit.files import make_folder
    from pursuit.models.loading import load_tokenizer
    from pursuit.pool import Pool

    if out is not None:
        make_folder(out)
    pool = None if not paths else Pool(
        paths, fields=settings.fields, on_bad_row=settings.on_bad_row, source_field=settings.source_field
    )  # fmt: skip
    tokenizer = load_tokenizer(
        settings.model or "", trust_remote_code=settings.trust_remote_code, revision=settings.revision
    )
    rows = None if pool is None else read_eval_set(
        pool, tokenizer, max_length=settings.max_length, chat_template=settings.chat_template,
        train_on=settings.train_on,
    )  # fmt: skip
    plan.check_rows(rows)
    found = carry_out(plan, _load(settings), tokenizer, rows, out)
    console = Console()
    if rows is not None and rows.refused:
        console.print(f"{len(rows.refused):,} rows were skipped, the first: {rows.refused[0].reason}", highlight=False)
    console.print(found.table())
    if out is not None:
        console.print(f"scores  {out / RESULT}\nrows    {out / EXAMPLES}", highlight=False, soft_wrap=True)


def _load(settings: Settings) -> nn.Module:
    """The model with its adapter. A whole model's folder in the adapter's place, as a training of all weights leaves
    it, is loaded instead."""
    from pursuit.models.configured import load_configured
    from pursuit.models.trainable import prepare_trainable

    whole = settings.adapter is not None and (Path(settings.adapter).expanduser() / "config.json").exists()
    model = load_configured(
        settings.model_copy(update={"model": settings.adapter, "revision": None}) if whole else settings
    )
    if settings.adapter is None or whole:
        return model
    return prepare_trainable(model, adapter=settings.adapter).requires_grad_(False)


def _split(names: list[str] | None) -> list[str]:
    return [name.strip() for part in names or [] for name in part.split(",") if name.strip()]
