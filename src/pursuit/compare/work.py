"""One cell: a model is trained on a subset and scored. All it needs is in a `Job`, so that it can run anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from pursuit.batches import EncodedRows
from pursuit.compare.plan import cell_folder
from pursuit.devices import out_of_memory
from pursuit.encoding import EncodedPool
from pursuit.errors import PursuitError
from pursuit.evaluate import EvalSet, evaluate, named_functions, read_eval_set
from pursuit.files import fingerprint, read_json, write_record
from pursuit.finetune import FineTune, finetune
from pursuit.models.configured import load_configured
from pursuit.models.loading import load_tokenizer
from pursuit.models.trainable import prepare_trainable
from pursuit.pool import Pool
from pursuit.run.folder import RunFolder
from pursuit.run.stages import Stages
from pursuit.selectors import Selection
from pursuit.settings import Settings, settings_from

RESULT = "cell.json"


@dataclass(frozen=True)
class Job:
    """All that a cell depends on, JSON-able but for the indices.

    Attributes:
        name: for people.
        cells: folder of all cells.
        run: run folder whose tokens are trained on; `encoded`: another model's tokens of the same pool instead.
        settings: of the model that is trained.
        model_digest: of its files; `adapter_digest`: of the adapter's that is trained on, if one is.
        data_digest: of the tokens of all rows.
        indices, weights: (k,) rows to train on; None for all of them.
        way: None for no training.
        evaluation, evaluation_digest: files of held-out rows, and of their contents.
    """

    name: str
    cells: str
    run: str
    encoded: str | None
    settings: dict[str, Any]
    model_digest: str
    adapter_digest: str | None
    data_digest: str
    indices: np.ndarray | None
    weights: np.ndarray | None
    num_rows: int
    way: FineTune | None
    seed: int
    evaluation: tuple[str, ...]
    evaluation_digest: str
    metrics: tuple[str, ...]
    scorers: tuple[str, ...]
    players: tuple[str, ...]
    keep_model: bool

    @property
    def folder(self) -> Path:
        """Where the cell is kept: other settings are another folder, so nothing is ever mixed."""
        weighted = self.way is not None and self.way.weighted  # otherwise weights change nothing that is done
        weights = np.asarray(self.weights).tolist() if weighted else None
        chosen = None if self.indices is None else [self.indices.tolist(), weights]
        trained = {name: self.settings[name] for name in ("lora", "weights", "dtype")}
        if self.settings.get("load_in_4bit"):
            trained["load_in_4bit"] = True
        trained["adapter"] = self.settings["adapter"] and [self.settings["adapter"], self.adapter_digest]
        key = fingerprint([
            self.model_digest, self.data_digest, trained, chosen, None if self.way is None else asdict(self.way),
            self.seed, self.evaluation_digest, self.metrics, self.scorers, self.players,
        ])  # fmt: skip
        return cell_folder(Path(self.cells), self.name, key)


def stands(job: Job) -> dict[str, Any] | None:
    """The cell's result if it is finished."""
    path = job.folder / RESULT
    return read_json(path) if path.exists() else None


def carry_out(job: Job) -> dict[str, Any]:
    """Train and score; what stands is kept. A failure of pursuit's own is part of the result: {"failed": why}."""
    if (found := stands(job)) is not None:
        return found
    try:
        result = _carry_out(job)
    except PursuitError as error:
        return {"failed": str(error)}
    except (RuntimeError, MemoryError) as error:  # a model that another process left no room for, for example
        if not out_of_memory(error):
            raise
        return {"failed": f"out of memory ({str(error).splitlines()[0]})"}
    write_record(job.folder / RESULT, result)
    if not job.keep_model:  # after its scores stand: a kill in between must not cost the training
        shutil.rmtree(job.folder / "model", ignore_errors=True)
    return result


def _carry_out(job: Job) -> dict[str, Any]:
    settings = settings_from(job.settings)
    tokenizer = load_tokenizer(
        str(settings.model), trust_remote_code=settings.trust_remote_code, revision=settings.revision
    )
    model = _model(settings, job.seed)
    result: dict[str, Any] = {"name": job.name, "seed": job.seed, "steps": 0, "training_seconds": None}
    if job.way is not None:
        done = finetune(
            model, _rows(job, settings), job.folder / "model", replace(job.way, seed=job.seed),
            selection=_selection(job), made_with={"model": job.model_digest},
        )  # fmt: skip
        result |= {
            "steps": done.steps, "epochs": done.epochs, "training_seconds": done.seconds, "tokens": done.tokens,
            "last_loss": done.losses[-1] if done.losses else None,
        }  # fmt: skip
    rows = held_out_rows(settings, tokenizer, job.evaluation)
    scored = evaluate(
        model, tokenizer, rows, metrics=job.metrics, scorers=named_functions(job.scorers),
        players=named_functions(job.players), out=job.folder / "evaluation",
    )  # fmt: skip
    result["scores"] = {metric: found.mean for metric, found in scored.macro.items()}
    result["families"] = {
        metric: {family: found[metric].mean for family, found in scored.families.items() if metric in found}
        for metric in scored.macro
    }
    return result


def held_out_rows(settings: Settings, tokenizer: PreTrainedTokenizerBase, paths: Sequence[str | Path]) -> EvalSet:
    """Held-out rows, read as the run's own are."""
    pool = Pool(
        [str(path) for path in paths], fields=settings.fields, on_bad_row=settings.on_bad_row,
        source_field=settings.source_field,
    )  # fmt: skip
    return read_eval_set(
        pool, tokenizer, max_length=settings.max_length, chat_template=settings.chat_template,
        train_on=settings.train_on,
    )  # fmt: skip


def _model(settings: Settings, seed: int) -> nn.Module:
    loaded = load_configured(settings)
    torch.manual_seed(seed)
    return prepare_trainable(
        loaded, lora=settings.lora_recipe(), adapter=settings.adapter, weights=settings.weights, seed=seed
    )


def _rows(job: Job, settings: Settings) -> EncodedRows:
    if job.encoded is not None:
        return EncodedPool(job.encoded)
    run = RunFolder(job.run)
    return Stages(run, run.resolve({})).tokens.opened()


def _selection(job: Job) -> Selection | None:
    if job.indices is None:
        return None
    weights = np.ones(len(job.indices)) if job.weights is None else job.weights
    return Selection(job.indices, weights, job.name, job.num_rows, {})
