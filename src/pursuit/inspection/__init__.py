"""Before any heavy work: what will be learnt from, and what that will take.

found = inspect(model="SmolLM2-135M", pool=["a.jsonl"])
found.pool.truncation.rows, found.prediction.hours
print_inspection(found)
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from pursuit.encoding import EncodedPool
from pursuit.errors import RunError, SettingsError
from pursuit.gradients.extract import as_extracted
from pursuit.inspection.autotune import autotune as autotune_features
from pursuit.inspection.data import Inspection, TargetView
from pursuit.inspection.pools import encode_or_refuse, show_examples, view_pool
from pursuit.inspection.predict import predict
from pursuit.inspection.prospects import Prediction, Proposal
from pursuit.inspection.terminal import print_findings, print_inspection, print_prospects, size
from pursuit.pool import Pool, Refusal
from pursuit.progress import say
from pursuit.run.leaks import find_leaks
from pursuit.run.run import Run
from pursuit.run.tokens import Rows
from pursuit.settings import merge, settings_from

__all__ = ["Inspection", "Prediction", "inspect", "inspect_pool", "print_inspection"]

WORTH_SAYING = 0.9  # share of the operations with which another projection is mentioned


def inspect(
    folder: str | Path | None = None, *, examples: int = 3, measure: bool = True, autotune: bool = False,
    **settings: Any,
) -> Inspection:  # fmt: skip
    """What a run would learn from, and the hours, gigabytes and memory it would take.

    Rows that cannot be used are always listed, whatever `on_bad_row` says. Nothing that a run has stored changes; an
    existing run keeps the encoding if it is the one that `select` would make.

    Args:
        folder: a run folder; if a run is there, its settings are used. Without one, nothing is kept.
        examples: how many rendered rows.
        measure: time a few batches on the model, for about 20 seconds.
        autotune: also propose d, stored type and batch size from up to 200 rows, in about a minute; the prediction is
            then that of the proposal.
        settings: as for `Run`: model, pool, target, …

    Raises:
        SettingsError: no model or pool, or a setting that cannot be accepted.
        RunError: settings differ from those of the run in the folder.
        DataError, ModelError: a file of the pool or the model cannot be read.
    """
    with _opened(folder, settings, examples) as look:
        return _with_prediction(look, measure, autotune)


def inspect_pool(
    folder: Path, values: Mapping[str, Any], examples: int, measure: bool, autotune: bool = False,
    price_per_hour: float | None = None, currency: str = "",
) -> Inspection:  # fmt: skip
    """The command: `inspect`, printed as it becomes known; `Path("")` for no folder."""
    console = Console()
    with _opened(None if folder == Path() else folder, values, examples) as look:
        print_findings(look.inspection, console)
        found = _with_prediction(look, measure, autotune)
        print_prospects(found, console, price_per_hour, currency)
        return found


@dataclass(frozen=True)
class _Look:
    """What is open while inspecting: the run (perhaps a temporary one), where it will lie, its encodings."""

    run: Run
    place: Path
    encoded: Rows | None
    target: EncodedPool | None
    inspection: Inspection


@contextmanager
def _opened(folder: str | Path | None, settings: Mapping[str, Any], examples: int) -> Iterator[_Look]:
    if examples < 0:
        raise SettingsError(f"examples = {examples}: must be 0 or more.")
    place = Path() if folder is None else Path(folder)
    stands = folder is not None and (place / "settings.json").exists()
    if not stands and (lacking := [key for key in ("model", "pool") if not settings.get(key)]):
        raise SettingsError(f"inspect needs --{lacking[0]}, or --run with the folder of an existing run.")
    with tempfile.TemporaryDirectory(prefix="pursuit-inspect-") as made:
        temporary = Path(made)
        run = Run(place if stands else temporary / "run", **settings)
        pool = _lenient(run, run.settings.pool)
        encoded, refused = _encode(run, pool, temporary, stands)
        target, view = _view_target(run, encoded, temporary)
        inspection = Inspection(
            model=run.model_name, max_length=run.settings.max_length, on_bad_row=run.settings.on_bad_row,
            pool=view_pool(pool, run.encoder, encoded, refused), target=view,
            examples=() if encoded is None else show_examples(run.encoder, encoded, examples),
        )  # fmt: skip
        yield _Look(run, place, encoded, target, inspection)


def _lenient(run: Run, paths: list[str]) -> Pool:
    """A pool that lists bad rows instead of stopping at the first."""
    s = run.settings
    return Pool(paths, fields=s.fields, on_bad_row="skip", source_field=s.source_field)


def _encode(run: Run, pool: Pool, temporary: Path, stands: bool) -> tuple[Rows | None, list[Refusal]]:
    """That of a run that stands; otherwise a temporary one, which lists the bad rows instead of stopping at them."""
    if stands:  # it is checked and opened, which costs the run no time
        encoded = run.stages.tokens.checked()
        return encoded, encoded.refused
    return encode_or_refuse(pool, run.encoder, temporary / "encoded")


def _view_target(run: Run, encoded: Rows | None, temporary: Path) -> tuple[EncodedPool | None, TargetView | None]:
    if not run.settings.target:
        return None, None
    pool = _lenient(run, run.settings.target)
    target, refused = encode_or_refuse(pool, run.encoder, temporary / "target")
    view = TargetView(view_pool(pool, run.encoder, target, refused))
    if target is not None and encoded is not None:
        leaks = find_leaks(encoded.rows, target.rows)
        leaked, prompts = (int(np.count_nonzero(partner >= 0)) for partner in (leaks.text, leaks.prompt))
        view = replace(view, leaked=leaked, leaked_prompts=prompts)
    return target, view


def _with_prediction(look: _Look, measure: bool, tune: bool) -> Inspection:
    if look.encoded is None:
        return look.inspection
    model, settings, proposal = look.run.model, look.run.settings, None
    if tune:
        say("trying projections, stored types and batch sizes …")
        with as_extracted(model):
            proposal = autotune_features(model, look.encoded, settings.feature_recipe())
        proposal = replace(proposal, needs_new_run=_would_refuse(look.run, proposal))
        settings = settings_from(merge(settings.model_dump(), {"features": proposal.settings()}))
    rates = None if proposal is None or settings.features.projection == "rademacher" else proposal.rates
    prediction = predict(model, settings, look.encoded, look.target, look.place, measure, rates)
    found = replace(look.inspection, prediction=prediction, proposal=proposal)
    return replace(found, warnings=tuple(_warnings(found, prediction, look)))


def _would_refuse(run: Run, proposal: Proposal) -> bool:
    """Whether the run stands already and has begun with other features."""
    if not (run.folder.path / "settings.json").exists():
        return False
    try:
        run.folder.resolve({"features": proposal.settings()})
    except RunError:
        return True
    return False


def _warnings(found: Inspection, prediction: Prediction, look: _Look) -> Iterator[str]:
    context, longest = _context(look.run.model), 0 if look.encoded is None else int(look.encoded.lengths.max())
    if context is not None and longest > context:
        yield f"the longest row has {longest:,} tokens, the model's context {context:,}: --max-length {context}."
    if prediction.disk_bytes > prediction.free_bytes:
        yield f"the run needs {size(prediction.disk_bytes)} of disk, and {size(prediction.free_bytes)} are free."
    if prediction.available_memory is not None and prediction.memory.bytes > prediction.available_memory:
        yield (
            f"the peak of about {size(prediction.memory.bytes)} is more than the device's "
            f"{size(prediction.available_memory)}: lower --features.batch-tokens and --warmup.micro-batch-tokens."
        )
    if prediction.measurement is not None and prediction.measurement.problem is not None:
        yield f"the timed batches failed: {prediction.measurement.problem}"
    if prediction.sketched_operations and prediction.sketched_operations < WORTH_SAYING * prediction.feature_operations:
        share = prediction.sketched_operations / prediction.feature_operations
        yield (
            f"gradients of large matrices are formed; --features.projection tensorsketch would not, with {share:.0%} "
            "of the operations and a little more noise (docs/methods.md)."
        )
    if found.target is not None and found.target.leaked:
        rows = "1 pool row also stands" if found.target.leaked == 1 else f"{found.target.leaked:,} pool rows also stand"
        yield f"{rows} in the target: a score on it would flatter them."


def _context(model: Any) -> int | None:
    """Tokens that the model was made for; None unknown."""
    config = model.config.get_text_config() if hasattr(model, "config") else None
    return getattr(config, "max_position_embeddings", None)
