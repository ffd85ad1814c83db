"""Writing chosen rows of a pool as a new file, the rows untouched."""

from __future__ import annotations

import gzip
import tempfile
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pursuit.errors import DataError, SettingsError
from pursuit.files import atomic_path, make_folder
from pursuit.pool.examples import BadRow
from pursuit.pool.pool import Pool
from pursuit.pool.readers import Record, arrow_schema, read_rows
from pursuit.pool.sources import Source

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
HEAD = 50  # rows of a source that tell its columns
SUBSET_ENDINGS = (*JSON_LINES, ".parquet")
_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError)  # what Arrow raises at values that are no column


def check_subset_path(out_path: str | Path) -> Path:
    """`out_path` as a Path, or a SettingsError if `write_subset` cannot write a file of that name."""
    path = Path(out_path)
    if not path.name.endswith(SUBSET_ENDINGS):
        raise SettingsError(f"{path}: a subset is written as {', '.join(JSON_LINES)} or .parquet; name the file so")
    return path


def check_table(pool: Pool, out_path: str | Path, without: Collection[str] = ()) -> None:
    """If the subset is to be Parquet: a DataError if the first rows of the pool's files do not fit into one table.

    Args:
        without: sources that are left out.
    """
    if not str(out_path).endswith(".parquet"):
        return
    tables = []
    for source in pool.sources:
        if source.name in without:
            continue
        records = []
        for row in islice(read_rows(source), HEAD):
            with suppress(BadRow):  # such rows are told of elsewhere
                records.append((row.line, row.load()[0]))
        tables.append((source.path, _source_table(source, records)))
    if tables:
        _one_table(tables)


def write_subset(pool: Pool, rows: Sequence[int] | np.ndarray, out_path: str | Path) -> Path:
    """Write the rows of these ordinals, in this order (a repeated one is written again), atomically.

    JSON lines hold the bytes of the rows untouched (the row as JSON where the pool is Parquet, CSV or `datasets`), and
    need no memory to speak of. Parquet holds the rows as a table, which is held in memory.

    Raises:
        SettingsError: the file's name ends otherwise than .jsonl, .jsonl.gz, .jsonl.zst, .parquet.
        DataError: a row does not exist or cannot be used, or for Parquet: columns of one name have different types.
    """
    path = check_subset_path(out_path)
    order = np.asarray(rows, dtype=np.int64).reshape(-1)
    if not order.size:
        raise DataError("no rows were chosen: there is no subset to write")
    ascending, positions = np.unique(order, return_inverse=True)
    if path.name.endswith(".parquet"):
        table = _table(pool, ascending).take(pa.array(positions))
        with atomic_path(path) as partial:
            pq.write_table(table, partial)
    else:
        _write_lines(pool, ascending, positions, path)
    return path


def _write_lines(pool: Pool, ascending: np.ndarray, positions: np.ndarray, path: Path) -> None:
    """The pool is read once in its own order into a spill file, from which the lines are taken in the chosen order."""
    with atomic_path(path) as partial, tempfile.TemporaryFile(dir=make_folder(path.parent)) as spill:
        ends = []
        for example in pool.take(ascending):
            spill.write(example.raw + b"\n")
            ends.append(spill.tell())
        starts = [0, *ends[:-1]]
        with _line_writer(partial, path.name) as out:
            for position in positions:
                spill.seek(starts[position])
                out.write(spill.read(ends[position] - starts[position]))


@contextmanager
def _line_writer(partial: Path, name: str) -> Iterator[BinaryIO]:
    with open(partial, "wb") as handle:
        if name.endswith(".gz"):  # no name and no time inside: the same rows give the same bytes
            with gzip.GzipFile(filename="", mode="wb", fileobj=handle, mtime=0) as packed:
                yield cast(BinaryIO, packed)
        elif name.endswith(".zst"):
            with pa.CompressedOutputStream(handle, "zstd") as packed:
                yield packed
        else:
            yield handle


def _table(pool: Pool, ascending: np.ndarray) -> pa.Table:
    by_path = {source.path: source for source in pool.sources}
    records: dict[str, list[tuple[int, Record]]] = {}
    for example, record in pool.take_records(ascending):
        records.setdefault(example.path, []).append((example.line, record))
    return _one_table([(path, _source_table(by_path[path], rows)) for path, rows in records.items()])


def _one_table(tables: Sequence[tuple[str, pa.Table]]) -> pa.Table:
    """Of all sources; a column that one of them lacks is null there."""
    joined: pa.Table | None = None
    for path, table in tables:
        try:
            joined = table if joined is None else pa.concat_tables([joined, table], promote_options="default")
        except pa.ArrowException as error:
            first = tables[0][0]
            raise DataError(
                f"a Parquet subset needs columns of one name to have one type in every source, but {path} has "
                f"({_columns(table)}), which does not go with {first} ({_columns(tables[0][1])}). Write .jsonl instead."
            ) from error
    assert joined is not None  # a pool has sources
    return joined


def _source_table(source: Source, rows: list[tuple[int, Record]]) -> pa.Table:
    """Of the rows of one source, each with its line."""
    schema = arrow_schema(source)
    if schema is None:
        names = dict.fromkeys(name for _, record in rows for name in record)
        return pa.table({name: _column(source, name, rows) for name in names})
    try:
        return pa.Table.from_pylist([record for _, record in rows], schema=schema)
    except _UNFIT as error:
        raise DataError(
            f"its rows do not fit into one table ({error}). Write .jsonl instead.", path=source.path
        ) from error


def _column(source: Source, name: str, rows: list[tuple[int, Record]]) -> pa.Array:
    """One field of all rows; a DataError names the first row that does not go with those before."""
    values = [record.get(name) for _, record in rows]
    try:
        return pa.array(values)
    except _UNFIT as error:
        first = bisect_left(range(len(values)), True, key=lambda place: not _is_column(values[: place + 1]))
        raise DataError(
            f"its rows do not fit into one table from this one on, by the column {name!r} ({error}). Write .jsonl "
            "instead.", path=source.path, line=rows[first][0],
        ) from error  # fmt: skip


def _is_column(values: list[Any]) -> bool:
    try:
        pa.array(values)
    except _UNFIT:
        return False
    return True


def _columns(table: pa.Table) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in table.schema)
