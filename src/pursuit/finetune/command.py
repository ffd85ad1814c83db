"""`pursuit finetune`: which rows, which model, and what is said about the result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.text import Text
from torch import nn
from transformers import PreTrainedTokenizerBase

from pursuit.batches import EncodedRows
from pursuit.encoding import Encoder, encode_pool
from pursuit.errors import RunError, SettingsError
from pursuit.export.subset import read_chosen
from pursuit.finetune.recipe import ROWS, TRAINED, USED, FineTune
from pursuit.finetune.result import Finetuned, read_record
from pursuit.finetune.run import check_folder, check_optimizer, finetune, finished
from pursuit.models.configured import load_configured
from pursuit.models.loading import load_tokenizer, model_fingerprint, settled_dtype
from pursuit.models.trainable import prepare_trainable
from pursuit.pool import Pool
from pursuit.run.folder import RunFolder
from pursuit.run.run import Run
from pursuit.run.saved import find_selection
from pursuit.selectors import Selection
from pursuit.settings import Settings, merge, settings_from

if TYPE_CHECKING:
    from pursuit.online import BatchSelector

OF_THE_MACHINE = ("dtype", "device", "attention")  # a run's own say nothing about where one trains later


@dataclass(frozen=True)
class Source:
    """Where the rows come from: a subset's file, a run's selection, or (neither) the files of the pool."""

    run: Path | None = None
    subset: Path | None = None
    selection: str | None = None


@dataclass(frozen=True)
class Rows:
    """Tokenised rows, which of them are trained on, and their weights; None for all, and for none."""

    encoded: EncodedRows
    selection: Selection | None = None
    weights: np.ndarray | None = None


def run_finetune(
    source: Source, out: Path, recipe: FineTune, given: Mapping[str, Any], *, full: bool = False,
    online: str | None = None, online_parameters: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Train as the command says, and say what came out of it.

    Args:
        given: settings from flags, by their names in `Settings`.
        full: train all weights of the model.
        online: name of a batch selector, with its parameters.
    """
    check_optimizer(recipe.optimizer)
    check_folder(out)
    chooser = _chooser(online, online_parameters or {})
    settings = _settings(source, given, full)
    recipe = replace(recipe, seed=settings.seed)
    if recipe.weighted and source.subset is None and source.selection is None:
        raise SettingsError("--weighted: weights come with --subset or --selection; the rows of a pool have none.")
    folder = RunFolder(out)
    tokenizer = load_tokenizer(
        _model_name(settings), trust_remote_code=settings.trust_remote_code, revision=settings.revision
    )
    with folder.locked():
        rows = _rows(source, settings, recipe, tokenizer, out / "encoded")
        dtype = settled_dtype(
            _model_name(settings), settings.dtype, settings.device, trust_remote_code=settings.trust_remote_code,
            revision=settings.revision,
        )  # fmt: skip
        job: dict[str, Any] = {
            "selection": rows.selection, "weights": rows.weights, "batch_selection": chooser,
            "made_with": _made_with(settings, dtype),
        }  # fmt: skip
        done = finished(out, rows.encoded, recipe, **job)
        if done is None:
            model = _model(settings, dtype)
            done = finetune(model, rows.encoded, out, recipe, tokenizer=tokenizer, **job)
    page = None if chooser is None else _online_page(done, chooser, _model_name(settings))
    show(done, _model_name(settings), page, weighted=recipe.weighted)


def show(done: Finetuned, base: str, page: Path | None = None, *, weighted: bool = False) -> None:
    """What was trained, what it took, and how to load it."""
    output = Console()
    few = max(1, min(5, done.steps // 2))
    first, last = np.mean(done.losses[:few]), np.mean(done.losses[-few:])
    output.print(
        f"{done.rows:,} rows, {done.steps:,} steps ({done.epochs:,.1f} epochs), {done.learnt_tokens:,} learnt tokens\n"
        f"loss {first:.3f} → {last:.3f} (means of {few} steps{', weighted' if weighted else ''}), "
        f"{done.seconds / 60:,.1f} min, peak memory {done.peak_memory_bytes / 2**30:,.1f} GiB",
        highlight=False,
    )  # fmt: skip
    kind = f"adapter for {base}" if done.adapter else "a whole model"
    output.print(Text.assemble(("model   ", "bold"), f"{done.folder} ({kind})"), soft_wrap=True)
    output.print(Text.assemble(("log     ", "bold"), str(done.folder / "log.jsonl")), soft_wrap=True)
    if page is not None:
        output.print(Text.assemble(("report  ", "bold"), str(page)), soft_wrap=True)


def _online_page(done: Finetuned, chooser: BatchSelector, base: str) -> Path:
    """Draw what was chosen, from the log, beside it."""
    from pursuit.report.online import OnlineData, logged_steps, write_online

    lines = (done.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    path = done.folder / "batch_selection.html"
    record = read_record(done.folder)
    write_online(
        OnlineData(
            title=done.folder.name, selector=chooser.name, model=base, steps=logged_steps(map(json.loads, lines)),
            settings=record["made_from"], versions=record["versions"],
        ),
        path,
    )  # fmt: skip
    return path


def _chooser(name: str | None, parameters: Mapping[str, Any]) -> BatchSelector | None:
    if name is None:
        if parameters:
            raise SettingsError(f"{', '.join(parameters)}: only used with --online NAME.")
        return None
    from pursuit.online import batch_selection

    return batch_selection(name, **parameters)


def _settings(source: Source, given: Mapping[str, Any], full: bool) -> Settings:
    """A run's settings with what was given over them, or the given alone."""
    if unused := sorted(set(given) - set(USED)):
        raise SettingsError(f"{', '.join(unused)}: not used by finetune.")
    named = [("--subset", source.subset), ("--selection", source.selection), ("--pool", given.get("pool"))]
    several = [flag for flag, value in named if value]
    if len(several) != 1:
        raise SettingsError(
            f"{' and '.join(several) or 'no rows'}: name what to train on by one of --subset FILE, --selection NAME "
            "(of the run) and --pool FILE …"
        )
    trained = (["full"] if full else []) + [name for name in TRAINED if given.get(name)]
    if len(trained) > 1:
        raise SettingsError(f"{', '.join(trained)}: give one of them; each says what is trained.")
    stored = _stored(source)
    if "model" in given:  # what belongs to the run's model does not fit another
        stored = {name: value for name, value in stored.items() if name not in ("model", "revision", *TRAINED)}
    if trained:  # instead of what the run trained
        stored |= {"adapter": None, "weights": ["*"] if full else []}
    if full or given.get("weights"):  # a run's own 4 bits are for its LoRA
        stored.pop("load_in_4bit", None)
    return settings_from(merge(stored, given))


def _stored(source: Source) -> dict[str, Any]:
    """What a run says about its model and its rows; nothing without a run."""
    if source.run is None:
        if source.selection is not None:
            raise SettingsError("--selection is of a run: name its folder with --run.")
        return {}
    if not (source.run / "settings.json").exists():
        raise RunError(f"{source.run}: there is no run in this folder. Give --model without --run, or another folder.")
    wanted = set(USED) - {"pool", *OF_THE_MACHINE}
    return {name: value for name, value in RunFolder(source.run).resolve({}).model_dump().items() if name in wanted}


def _model_name(settings: Settings) -> str:
    """The model, as an absolute path where it is one, so that the adapter finds it from anywhere."""
    if settings.model is None:
        raise SettingsError("name a model with --model, or a run that has one with --run.")
    local = Path(settings.model).expanduser()
    return str(local.absolute()) if local.exists() else settings.model


def _rows(
    source: Source, settings: Settings, recipe: FineTune, tokenizer: PreTrainedTokenizerBase, store: Path
) -> Rows:
    if source.selection is not None:
        return _selected(source, settings)
    encoder = Encoder(
        tokenizer, max_length=settings.max_length, chat_template=settings.chat_template, train_on=settings.train_on
    )
    files: list[str] | list[Path] = settings.pool if source.subset is None else [source.subset]
    pool = Pool(
        files, fields=settings.fields, on_bad_row=settings.on_bad_row, source_field=settings.source_field
    )  # fmt: skip
    weights = None
    if recipe.weighted:
        assert source.subset is not None  # checked by the caller
        table = read_chosen(source.subset, pool.count_rows(), ", or train without --weighted")
        weights = table["weight"].to_numpy()
    encoded = encode_pool(pool, encoder, store)
    return Rows(encoded, weights=None if weights is None else weights[encoded.rows["row"].to_numpy()])


def _selected(source: Source, settings: Settings) -> Rows:
    """A run's own tokens, and which of its rows were selected."""
    assert source.run is not None  # `_stored` checked it
    run = Run(source.run)
    if differing := [name for name in ("model", *ROWS) if getattr(run.settings, name) != getattr(settings, name)]:
        raise SettingsError(
            f"{', '.join(differing)}: --selection takes the run's own tokens. Give the subset's file by --subset to "
            "read its rows otherwise, or for another model."
        )
    selection = Selection.load(find_selection(run.folder.selections, source.selection))
    return Rows(run.encode(), selection)


def _model(settings: Settings, dtype: str) -> nn.Module:
    loaded = load_configured(settings.model_copy(update={"model": _model_name(settings), "dtype": dtype}))
    return prepare_trainable(
        loaded, lora=settings.lora_recipe(), adapter=settings.adapter, weights=settings.weights, seed=settings.seed
    )


def _made_with(settings: Settings, dtype: str) -> dict[str, Any]:
    """What shapes the model before it is trained; an adapter's weights are told by their bits."""
    trains: Any = "an adapter" if settings.adapter else list(settings.weights) or settings.lora.model_dump(mode="json")
    digest = model_fingerprint(_model_name(settings), revision=settings.revision)["digest"]
    held = settings.model_copy(update={"dtype": dtype}).held_as
    return {"model": digest, "dtype": held, "trains": trains}
