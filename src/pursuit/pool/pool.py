"""The pool: all rows of all files as one stream of examples, never held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pursuit.errors import DataError, SettingsError
from pursuit.files import fingerprint
from pursuit.pool.examples import BadRow, Example, Refusal
from pursuit.pool.fingerprints import content_digest
from pursuit.pool.formats import check_fields, read_content, read_source
from pursuit.pool.readers import RawRow, Record, read_rows
from pursuit.pool.sources import Source, resolve_sources

OnBadRow = Literal["error", "skip"]


class Pool:
    """A stream of examples from one or several files or data sets.

    Each path may be a file (JSON lines, one JSON array, CSV, TSV, Parquet; the text kinds also .gz, .zst, .xz), a glob,
    an fsspec URL, a folder saved by `datasets`, or anything `datasets.load_dataset` takes, with `:split` after it if it
    is not to be "train". `name=path` names the source of its rows; otherwise a row's own `source_field` does, otherwise
    the file's name without folder and endings.

    Args:
        paths: one or more of the above; their order is the order of the rows.
        fields: our names (messages, prompt, response, system, text, source) to the field names of the rows.
        on_bad_row: "error" raises at the first row that cannot be used; "skip" lists it in `refused` and goes on.
        source_field: the field by which a row names its source.

    Raises:
        DataError: a file is missing or given twice, or its kind is not known.
        SettingsError: an unknown name in `fields`, or another value of `on_bad_row`.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        fields: Mapping[str, str] | None = None,
        on_bad_row: OnBadRow = "error",
        source_field: str = "source",
    ) -> None:
        if on_bad_row not in ("error", "skip"):
            raise SettingsError(f"on_bad_row: {on_bad_row!r} is not accepted; use 'error' or 'skip'")
        self.fields = check_fields(fields)
        self.on_bad_row = on_bad_row
        self.source_field = self.fields.get("source", source_field)
        self.sources = resolve_sources(paths)
        self.refused: list[Refusal] = []
        self._fingerprint: str | None = None
        self._num_rows: int | None = None

    def __iter__(self) -> Iterator[Example]:
        """Stream the usable examples; `refused` is filled anew."""
        self.refused = []
        usable = 0
        for item in self.stream():
            if isinstance(item, Refusal):
                self.refused.append(item)
            else:
                usable += 1
                yield item
        if not usable:
            raise no_usable_rows(self.refused)

    def stream(self, start: int = 0) -> Iterator[Example | Refusal]:
        """Examples and refused rows in order, from the row of ordinal `start` on (earlier rows are not parsed)."""
        for row, source, raw in self._raw_rows():
            if raw is None:
                refusal = Refusal(source.path, None, "the file holds no rows")
                if row >= start:
                    yield self._refuse(refusal)
            elif row >= start:
                try:
                    yield self._parse(row, source, raw)[0]
                except BadRow as error:
                    yield self._refuse(Refusal(source.path, raw.line, str(error), row))

    def take(self, rows: Iterable[int]) -> Iterator[Example]:
        """Stream again and yield the examples of these row ordinals, ascending, each once.

        Raises:
            DataError: one of them is not a usable row of the pool.
        """
        for example, _ in self.take_records(rows):
            yield example

    def take_records(self, rows: Iterable[int]) -> Iterator[tuple[Example, Record]]:
        """As `take`, with the row's fields beside each example."""
        wanted = iter(sorted({int(row) for row in rows}))
        following = next(wanted, None)
        for row, source, raw in self._raw_rows():
            if following is None:
                return
            if row == following and raw is not None:
                try:
                    yield self._parse(row, source, raw)
                except BadRow as error:
                    raise DataError(str(error), path=source.path, line=raw.line) from error
                following = next(wanted, None)
        if following is not None:
            raise DataError(f"row {following} was asked for, but the pool has {self.count_rows():,} rows")

    def count_rows(self) -> int:
        """How many non-blank rows all files have, good or bad; reads the files through once."""
        if self._num_rows is None:
            self._num_rows = sum(raw is not None for _, _, raw in self._raw_rows())
        return self._num_rows

    def fingerprint(self) -> str:
        """Digest of what the rows depend on: file contents (SHA-256), order, source names, field mapping."""
        if self._fingerprint is None:
            described = [[source.name, source.named, source.kind, content_digest(source)] for source in self.sources]
            self._fingerprint = fingerprint(
                {"sources": described, "fields": self.fields, "source_field": self.source_field}
            )
        return self._fingerprint

    def _raw_rows(self) -> Iterator[tuple[int, Source, RawRow | None]]:
        """(ordinal, source, row); for a file without rows once with None and the ordinal of the next row."""
        row = 0
        for source in self.sources:
            first = row
            for raw in read_rows(source):
                yield row, source, raw
                row += 1
            if row == first:
                yield row, source, None

    def _parse(self, row: int, source: Source, raw: RawRow) -> tuple[Example, Record]:
        record, content = raw.load()
        messages, text = read_content(record, self.fields)
        name = source.name if source.named else read_source(record, self.source_field) or source.name
        return Example(row, name, source.path, raw.line, messages, text, content), record

    def _refuse(self, refusal: Refusal) -> Refusal:
        if self.on_bad_row == "error":
            raise refusal.as_error()
        return refusal


def no_usable_rows(refused: Sequence[Any]) -> DataError:
    """The error for a pool of which nothing is left, with the first refusal as the example."""
    if not refused:
        return DataError("the pool has no rows")
    first = refused[0]
    place = first.path if first.line is None else f"{first.path}, line {first.line}"
    return DataError(f"the pool has no usable row: {len(refused):,} were refused, the first ({place}): {first.reason}")
