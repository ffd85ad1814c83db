"""The comparison itself: select with every method, have every cell trained and scored, put the scores together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import RenderableType

from pursuit.compare.choices import Choices, choices
from pursuit.compare.plan import FULL, UNTRAINED, Cell, Comparison, cells, parse_method
from pursuit.compare.results import comparison_data, runs_table, terminal_table
from pursuit.compare.work import Job, carry_out, held_out_rows
from pursuit.encoding import EncodedPool, Encoder, encode_pool
from pursuit.engine import LOCAL, Engine
from pursuit.errors import SelectionError
from pursuit.evaluate import check_metrics, named_functions
from pursuit.files import atomic_path, fingerprint, make_folder
from pursuit.finetune import FineTune
from pursuit.finetune.run import check_optimizer
from pursuit.models.loading import load_tokenizer, model_fingerprint, settled_dtype
from pursuit.models.trainable import adapter_digest
from pursuit.pool import Pool
from pursuit.progress import progress
from pursuit.report.comparison import CompareData, write_comparison
from pursuit.run.run import Run
from pursuit.run.workers import for_workers
from pursuit.selectors import Selection, check_budget, method
from pursuit.settings import Settings
from pursuit.training.plan import steps_in_epoch


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        data: means, intervals, paired differences, as the page shows them.
        runs: a row a training: method, budget, seed, rows, scores, seconds.
        table, report: where they were written.
        summary: the table, to print with rich.
    """

    data: CompareData
    runs: pa.Table
    table: Path
    report: Path
    summary: RenderableType


def compare(
    run: Run, comparison: Comparison, out: str | Path, *, engine: Engine = LOCAL, price_per_hour: float | None = None,
    currency: str = "",
) -> Compared:  # fmt: skip
    """Train on what each method chooses (and on random rows, and on all of them), score, and compare.

    A finished selection or cell is not done again, and one that was killed goes on where it was. Other settings make
    other cells in the same folder. A cell that fails is named in the report; the next start tries it again.

    Args:
        run: whose pool, features and target are selected from; whose model is trained if no other is named.
        comparison: see `Comparison`.
        out: folder for the cells, `runs.parquet` and `comparison.html`.
        engine: where cells run, side by side with more than one worker.
        price_per_hour, currency: of the machine, to show money beside time.

    Raises:
        SettingsError: an unknown method, parameter, metric, scorer or optimizer; before anything heavy.
        SelectionError: a method needs a target, and the run has none.
        DataError: a held-out row that cannot be used.
    """
    _check(run, comparison)
    out = make_folder(Path(out))
    trained = _Trained(run, comparison, out)
    made = choices(run, comparison, out)
    steps = _equal_steps(comparison, [len(chosen) for chosen, _ in made.values()])
    todo = [(cell, _job(cell, run, comparison, trained, made, steps, out)) for cell in cells(comparison)]
    if engine is not LOCAL:
        todo = [(cell, replace(job, settings=for_workers(job.settings))) for cell, job in todo]
    run.stages.given.forget_model()  # each cell loads its own
    results = []
    with progress("trainings", len(todo), "cells") as advance:
        for (cell, job), result in zip(todo, engine.map(carry_out, [job for _, job in todo]), strict=True):
            _, seconds = made.get((cell.method, cell.budget, cell.seed), (None, None))
            rows = len(job.indices) if job.indices is not None else (job.num_rows if cell.method == FULL else 0)
            results.append((cell, {**result, "rows": rows, "selection_seconds": seconds}))
            advance(1)
    return _publish(run, comparison, trained, results, out, price_per_hour, currency)


def _check(run: Run, comparison: Comparison) -> None:
    check_metrics(comparison.metrics)
    named_functions([*comparison.scorers, *comparison.players])
    for way in comparison.ways():
        check_optimizer(way.optimizer)
    for budget in comparison.budgets:
        check_budget(budget)
    for text in comparison.all_methods():
        name, parameters = parse_method(text)
        if method(name, **parameters).needs_target and not run.settings.target:
            raise SelectionError(f"{name} needs a target: files with examples to be good at (--target FILE).")


class _Trained:
    """The model that is trained, and the pool's rows as it reads them."""

    def __init__(self, run: Run, comparison: Comparison, out: Path) -> None:
        self.run = run
        self.settings = self._settings(run.settings, comparison)
        s = self.settings
        self.tokenizer = load_tokenizer(str(s.model), trust_remote_code=s.trust_remote_code, revision=s.revision)
        self.digest = model_fingerprint(str(s.model), revision=s.revision)["digest"]
        held_out = held_out_rows(s, self.tokenizer, comparison.evaluation)
        self.evaluation = [str(path) for path in comparison.evaluation]
        self.evaluation_digest, self.held_out = held_out.digest, held_out
        self.run_rows = run.encode()
        self.encoded: EncodedPool | None = None
        if comparison.train_model is not None:
            encoder = Encoder(
                self.tokenizer, max_length=s.max_length, chat_template=s.chat_template, train_on=s.train_on
            )
            lenient = Pool(
                [path for part in run.folder.parts(s.pool) for path in part.paths], fields=s.fields,
                on_bad_row="skip", source_field=s.source_field,
            )  # fmt: skip
            self.encoded = encode_pool(lenient, encoder, out / "encoded" / fingerprint(encoder.settings()))

    @cached_property
    def data_digest(self) -> str:
        """Of the tokens of all rows that the model could be trained on."""
        return fingerprint(self.run.stages.tokens.manifests() if self.encoded is None else self.encoded.manifest)

    @property
    def num_rows(self) -> int:
        """Rows that the model could be trained on."""
        return len(self.run_rows if self.encoded is None else self.encoded)

    @cached_property
    def adapter_digest(self) -> str | None:
        """Of the adapter that is trained on, if there is one."""
        return None if self.settings.adapter is None else adapter_digest(self.settings.adapter)

    def rows(self, chosen: Selection) -> tuple[np.ndarray, np.ndarray]:
        """The chosen rows in the numbering of this model's tokens; those that it cannot read are left out."""
        if self.encoded is None:
            return chosen.indices, chosen.weights
        place = {row: index for index, row in enumerate(self.encoded.rows["row"].to_pylist())}
        ordinals = self.run_rows.rows["row"].to_numpy()[chosen.indices]
        found = np.array([place.get(int(row), -1) for row in ordinals])
        return found[found >= 0], chosen.weights[found >= 0]

    @staticmethod
    def _settings(settings: Settings, comparison: Comparison) -> Settings:
        changes: dict[str, Any] = {}
        if comparison.train_model is not None:
            local = Path(comparison.train_model).expanduser()
            model = str(local.absolute()) if local.exists() else comparison.train_model
            dtype = settled_dtype(model, "auto", settings.device, trust_remote_code=settings.trust_remote_code)
            lora = settings.lora.model_copy(update={"targets": None})  # names of the other model's modules
            changes |= {
                "model": model, "revision": None, "adapter": None, "weights": [], "dtype": dtype, "lora": lora,
                "chat_template": comparison.train_template,
            }  # fmt: skip
        if comparison.all_weights:
            changes |= {"weights": ["*"], "adapter": None, "load_in_4bit": False}
        return settings.model_copy(update=changes)


def _equal_steps(comparison: Comparison, sizes: list[int]) -> int | None:
    if comparison.equal == "epochs":
        return None
    way = comparison.train
    return way.max_steps or way.epochs * steps_in_epoch(max(sizes), way.batch_size)


def _job(
    cell: Cell, run: Run, comparison: Comparison, trained: _Trained, made: Choices, steps: int | None, out: Path
) -> Job:
    indices = weights = None
    if (key := (cell.method, cell.budget, cell.seed)) in made:
        indices, weights = trained.rows(made[key][0])
    way: FineTune | None = cell.way
    if way is not None:
        way = replace(way, max_steps=steps, seed=0, weighted=way.weighted and indices is not None)
    return Job(
        name=cell.name, cells=str(out.absolute() / "cells"), run=str(run.folder.path.absolute()),
        encoded=None if trained.encoded is None else str(trained.encoded.folder.absolute()),
        settings=trained.settings.model_dump(mode="json"), model_digest=trained.digest,
        adapter_digest=trained.adapter_digest, data_digest=trained.data_digest,
        indices=indices, weights=weights, num_rows=trained.num_rows, way=way, seed=cell.seed,
        evaluation=tuple(trained.evaluation), evaluation_digest=trained.evaluation_digest,
        metrics=tuple(comparison.metrics), scorers=tuple(comparison.scorers), players=tuple(comparison.players),
        keep_model=comparison.keep_models,
    )  # fmt: skip


def _publish(
    run: Run, comparison: Comparison, trained: _Trained, results: list[tuple[Cell, dict[str, Any]]], out: Path,
    price_per_hour: float | None, currency: str,
) -> Compared:  # fmt: skip
    runs = runs_table(results, len(trained.run_rows))
    table = out / "runs.parquet"
    with atomic_path(table) as partial:
        pq.write_table(runs, partial)
    families = sorted({row.source for row in trained.held_out.rows})
    selects = run.model_name if comparison.train_model is not None else ""
    data = comparison_data(
        comparison, results, len(trained.run_rows), runs=runs, model=str(trained.settings.model), select_model=selects,
        evaluation=f"{len(trained.held_out):,} rows of {len(families):,} families",
        settings={"run": str(run.folder.path), **run.settings.model_dump(mode="json")},
    )  # fmt: skip
    data = replace(data, price_per_hour=price_per_hour, currency=currency)
    report = out / "comparison.html"
    write_comparison(data, report)
    return Compared(data, runs, table, report, terminal_table(data))


__all__ = ["Compared", "Comparison", "UNTRAINED", "compare"]
