"""Streaming rows out of one file or data set; a row is parsed only when someone asks for it."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import lzma
import math
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pursuit.pool.examples import BadRow
from pursuit.pool.sources import Source

Record = dict[str, Any]
BATCH_ROWS = 256  # rows of a column file held at a time
CHUNK_CHARACTERS = 1 << 20
_UNREADABLE = (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error, pa.ArrowException)
_BLANK = re.compile(r"\s*")

csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is shorter than real responses


@dataclass(slots=True)
class RawRow:
    """A row not yet parsed: where it starts, and how to get the record and its bytes (may raise BadRow)."""

    line: int
    load: Callable[[], tuple[Record, bytes]]


def read_rows(source: Source) -> Iterator[RawRow]:
    """Stream the non-blank rows of a source; damage to the file itself ends it with one bad row."""
    readers = {"jsonl": _json_lines, "json": _json_file, "csv": _csv, "tsv": _csv, "parquet": _parquet}
    line = 0
    try:
        rows = _dataset(source) if source.kind == "dataset" else readers[source.kind](source)
        for row in rows:
            line = row.line
            yield row
    except _UNREADABLE as error:
        yield _broken(line + 1, f"the file cannot be read from here on ({error or type(error).__name__})")


def open_bytes(path: str) -> BinaryIO:
    """Open a local file or an fsspec URL for reading, unpacking .gz, .xz and .zst as it is read."""
    handle = cast(BinaryIO, fsspec.open(path, "rb").open())
    if path.endswith(".gz"):
        return cast(BinaryIO, _closing(gzip.GzipFile(fileobj=handle), handle))
    if path.endswith(".xz"):
        return cast(BinaryIO, _closing(lzma.LZMAFile(handle), handle))
    if path.endswith(".zst"):  # pyarrow's reader, unlike zstandard's, tells a truncated file from a whole one
        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(handle, "zstd"), 1 << 17))
    return handle


def _closing(unpacked: io.BufferedIOBase, packed: BinaryIO) -> io.BufferedIOBase:
    """The unpacking reader, which now closes the file below it too."""
    close = unpacked.close

    def both() -> None:
        close()
        packed.close()

    unpacked.close = both  # type: ignore[method-assign]
    return unpacked


def arrow_schema(source: Source) -> pa.Schema | None:
    """The column types of a Parquet file or data set; None for kinds that have none."""
    if source.kind == "dataset":
        return source.dataset.features.arrow_schema.remove_metadata()
    if source.kind == "parquet":
        with open_bytes(source.path) as handle:
            return pq.read_schema(handle).remove_metadata()
    return None


def _broken(line: int, reason: str) -> RawRow:
    def load() -> tuple[Record, bytes]:
        raise BadRow(reason)

    return RawRow(line, load)


def _json_lines(source: Source) -> Iterator[RawRow]:
    with open_bytes(source.path) as handle:
        for line, raw in enumerate(handle, start=1):
            content = raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw
            content = content.removesuffix(b"\n").removesuffix(b"\r")
            if content.strip():
                yield RawRow(line, partial(_parse_line, content))


def _parse_line(raw: bytes) -> tuple[Record, bytes]:
    if b"\0" in raw:
        raise BadRow(f"a NUL byte at column {raw.index(0) + 1}: this is not JSON text (UTF-16, or a damaged file?)")
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRow(f"not valid UTF-8 at byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise BadRow(f"malformed JSON at column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise BadRow(f"malformed JSON: {error}") from error
    return _as_record(value), raw


def _as_record(value: Any) -> Record:
    if not isinstance(value, dict):
        raise BadRow(f"a row must be a JSON object with named fields, not a {type(value).__name__}")
    return value


def _json_file(source: Source) -> Iterator[RawRow]:
    """A .json file: one array of rows, or (as many are) one row a line."""
    with open_bytes(source.path) as handle:
        start = handle.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"["):
        yield from _json_array(source)
    else:
        yield from _json_lines(source)


def _json_array(source: Source) -> Iterator[RawRow]:
    """The elements of one JSON array, decoded from a window of text so that the file is never held whole."""
    decoder, line = json.JSONDecoder(), 0
    with open_bytes(source.path) as handle:
        window = _Window(handle)
        window.skip("[")
        while not window.skip("]"):
            line = max(window.line, line + 1)  # rows on one line are counted on
            try:
                value, text = window.decode(decoder)
                closing = window.peek()
                if closing not in (",", "]"):
                    raise BadRow(f"malformed JSON: after a row stands {closing!r} instead of ',' or ']'")
            except BadRow as error:
                yield _broken(line, f"{error}. The rest of the file is not read.")
                return
            raw = text.encode("utf-8", "surrogatepass") if "\n" not in text else _as_json(value)
            yield RawRow(line, partial(_element, value, raw))
            window.skip(",")


def _element(value: Any, raw: bytes) -> tuple[Record, bytes]:
    return _as_record(value), raw


class _Window:
    """The part of a text file that is being parsed."""

    def __init__(self, handle: BinaryIO) -> None:
        self._reader = codecs.getreader("utf-8-sig")(handle)
        self._text, self._position, self._chunk = "", 0, CHUNK_CHARACTERS
        self.line = 1

    def _grow(self) -> bool:
        more = self._reader.read(self._chunk)
        self._text = self._text[self._position :] + more
        self._position = 0
        return bool(more)

    def _consume(self, end: int) -> str:
        taken = self._text[self._position : end]
        self.line += taken.count("\n")
        self._position = end
        return taken

    def peek(self) -> str:
        """The next character that is not blank, or '' at the end."""
        while True:
            match = _BLANK.match(self._text, self._position)
            self._consume(match.end() if match else self._position)
            if self._position < len(self._text) or not self._grow():
                return self._text[self._position : self._position + 1]

    def skip(self, character: str) -> bool:
        """Step over `character` if it is next."""
        found = self.peek() == character
        if found:
            self._consume(self._position + 1)
        self.peek()
        return found

    def decode(self, decoder: json.JSONDecoder) -> tuple[Any, str]:
        """The next value and its text; reads on while the value is cut off by the window's end."""
        self._chunk = CHUNK_CHARACTERS
        while True:
            try:
                value, end = decoder.raw_decode(self._text, self._position)
                length = end - self._position
                if end < len(self._text) or not self._grow():
                    return value, self._consume(self._position + length)
            except json.JSONDecodeError as error:
                cut_off = error.pos >= len(self._text) - 16 or error.msg.startswith("Unterminated")
                if not cut_off or not self._grow():
                    raise BadRow(f"malformed JSON: {error.msg}") from error
            except RecursionError as error:
                raise BadRow("malformed JSON: nested too deeply") from error
            self._chunk *= 2


def _csv(source: Source) -> Iterator[RawRow]:
    delimiter = "\t" if source.kind == "tsv" else ","
    # surrogateescape keeps invalid bytes visible, so that only their own row is refused
    with io.TextIOWrapper(open_bytes(source.path), "utf-8-sig", errors="surrogateescape", newline="") as text:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        header = next(rows, None)
        if header is None:
            return
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated:
            yield _broken(1, f"the header names {', '.join(map(repr, repeated))} more than once")
            return
        while True:
            line = rows.line_num + 1
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield _broken(line, f"malformed CSV: {error}")
                continue
            if cells:
                yield RawRow(line, partial(_csv_record, header, cells))


def _csv_record(header: list[str], cells: list[str]) -> tuple[Record, bytes]:
    if len(cells) != len(header):
        raise BadRow(f"has {len(cells)} columns where the header has {len(header)}")
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow("not valid UTF-8") from error
    record = dict(zip(header, cells, strict=True))
    return record, _as_json(record)


def _parquet(source: Source) -> Iterator[RawRow]:
    with open_bytes(source.path) as handle, pq.ParquetFile(handle) as file:
        yield from _arrow_rows(file.iter_batches(batch_size=BATCH_ROWS))


def _dataset(source: Source) -> Iterator[RawRow]:
    tables = source.dataset.with_format("arrow").iter(batch_size=BATCH_ROWS)
    yield from _arrow_rows(tables)


def _arrow_rows(batches: Iterator[pa.RecordBatch | pa.Table]) -> Iterator[RawRow]:
    line = 0
    for batch in batches:
        rows = _Batch(batch)
        for position in range(batch.num_rows):
            line += 1
            yield RawRow(line, partial(rows.load, position))


class _Batch:
    """Arrow rows made into Python ones when the first of them is asked for."""

    def __init__(self, batch: pa.RecordBatch | pa.Table) -> None:
        self._batch = batch
        self._records: list[Record] | None = None

    def load(self, position: int) -> tuple[Record, bytes]:
        if self._records is None:
            try:
                self._records = self._batch.to_pylist()
            except (UnicodeDecodeError, ValueError) as error:
                raise BadRow(f"its columns cannot be read: {error}") from error
        record = self._records[position]
        return record, _as_json(record)


def _as_json(record: Any) -> bytes:
    try:
        text = json.dumps(record, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # NaN and infinity have no JSON form
        text = json.dumps(_finite(record), ensure_ascii=False, default=str)
    return text.encode("utf-8", "surrogatepass")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
