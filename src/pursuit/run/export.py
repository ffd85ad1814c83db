"""From a selection, or a subset with its table, to a file for a trainer, the weights with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pursuit.errors import SettingsError, StoreError
from pursuit.export.formats import Exported, TrainerFormat, TrainOn, check_out, write_for_trainer
from pursuit.export.subset import read_chosen
from pursuit.files import refuse_overwriting, refuse_unwritable
from pursuit.pool import Pool
from pursuit.run.saved import find_selection
from pursuit.selectors import Selection

if TYPE_CHECKING:
    from pursuit.run.run import Run


def export_selection(
    run: Run, selection: Selection | str | Path | None, to: TrainerFormat, out: str | Path
) -> Exported:
    """Write the chosen rows of a run for a trainer, in order of choice. The chosen rows are held in memory.

    Args:
        selection: one that the run made, or its folder, or the folder's name in `selections/`, or the beginning of the
            name (`tagcos`) where only one begins so. None: the only one that there is.
        to: trl, llama-factory, axolotl, messages or parquet; see `pursuit.export.formats`.
        out: the file.

    Raises:
        SettingsError: no such selection or several, or a wrong format or file name.
        StoreError: the pool is not the one that was selected from.
        DataError: a row that the trainer would drop or learn from otherwise.
    """
    path = _not_an_input(check_out(to, out), run.pool)
    refuse_unwritable([path])
    if not isinstance(selection, Selection):
        selection = Selection.load(find_selection(run.folder.selections, selection))
    encoded = run.stages.tokens.opened()
    if run.stages.tokens.pool_changed() or selection.num_rows > len(encoded):  # fewer: rows were appended since
        raise StoreError(f"{run.folder.path}: the pool has changed since its rows were selected. Select again.")
    ordinals = encoded.rows["row"].to_numpy()[selection.indices]
    by_row = {example.row: example for example in run.pool.take(ordinals)}
    examples = [by_row[int(row)] for row in ordinals]
    return write_for_trainer(examples, selection.weights.tolist(), to, path, train_on=run.settings.train_on)


def export_subset(
    subset: str | Path, to: TrainerFormat, out: str | Path, *, fields: Mapping[str, str] | None = None,
    source_field: str = "source", train_on: TrainOn = "all",
) -> Exported:  # fmt: skip
    """Write a subset file for a trainer, with the weights from the table that `pursuit select` left beside it.

    Args:
        subset: `x.jsonl` (or .gz, .zst, .parquet), beside `x.chosen.parquet`.
        to, out: as in `export_selection`.
        fields, source_field, train_on: as they were when the rows were selected.

    Raises:
        DataError: the table is missing or another subset's, or a row cannot be used.
    """
    pool = Pool([subset], fields=fields, source_field=source_field)
    path = _not_an_input(check_out(to, out), pool)
    examples = list(pool)
    table = read_chosen(Path(subset), len(examples))
    if "path" in table.column_names:
        refuse_overwriting([path], set(table["path"].to_pylist()))
    refuse_unwritable([path])
    for name in {"source", "path", "line"} & set(table.column_names):
        values = table[name].to_pylist()
        examples = [replace(example, **{name: value}) for example, value in zip(examples, values, strict=True)]
    return write_for_trainer(examples, table["weight"].to_numpy().tolist(), to, path, train_on=train_on)


def _not_an_input(path: Path, pool: Pool) -> Path:
    for source in pool.sources:
        if Path(source.path).resolve() == path.resolve():
            raise SettingsError(f"{path}: would overwrite the file that the rows are read from. Name another.")
    return path
