"""Encoding a pool into a store, shard by shard, so that a killed run goes on at the last whole shard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pursuit.encoding.encoder import Encoded, Encoder
from pursuit.encoding.store import (
    MANIFEST,
    ROW_SCHEMA,
    EncodedPool,
    check_file,
    record_path,
    rows_path,
    tokens_path,
)
from pursuit.errors import DataError, StoreError
from pursuit.files import atomic_path, read_json, sha256_file, write_json, write_record, write_tensors
from pursuit.pool.examples import Example, Refusal
from pursuit.pool.pool import Pool, no_usable_rows
from pursuit.progress import Advance, progress

SETTINGS = "encoding.json"
BATCH_ROWS = 256  # rows tokenised in one call
CODE_VERSION = 1  # raised when the same rows would give other tokens
Item = tuple[Example, Encoded] | Refusal


@dataclass(slots=True)
class _Shard:
    """What goes into one shard, and where the next one begins in the pool."""

    accepted: list[tuple[Example, Encoded]] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    next_row: int | None = None  # None: the pool ended


def encode_pool(
    pool: Pool,
    encoder: Encoder,
    folder: str | Path,
    *,
    shard_rows: int = 8192,
    fingerprint: Mapping[str, Any] | None = None,
) -> EncodedPool:
    """Encode every usable row of a pool into `folder`; a store that already stands there is used as it is.

    Args:
        pool: its `on_bad_row` also rules rows that the encoder refuses.
        encoder: gives the tokens.
        folder: the store. A run that was killed is taken up at its last whole shard, with the same bytes as if it had
            run through; damaged shards are made anew. An unfinished store made with other settings is started over.
        shard_rows: accepted rows in a shard.
        fingerprint: what else the tokens depend on; joined with the pool's and the encoder's own.

    Raises:
        DataError: a row cannot be used (with `on_bad_row="error"`), or none can.
        ModelError: a conversation without a chat template.
        StoreError: a finished store stands there that was made from something else; the difference is named.
    """
    folder = Path(folder)
    settings = {
        "code": CODE_VERSION, "pool": pool.fingerprint(), "shard_rows": shard_rows,
        **encoder.settings(), **(fingerprint or {}),
    }  # fmt: skip
    _prepare(folder, settings)
    records: list[dict[str, Any]] = []
    start = _skip_whole(folder, records, 0)
    if start is not None:
        with progress("encoding", pool.count_rows(), done=start) as advance:
            while start is not None:
                start = _encode_from(pool, encoder, folder, shard_rows, records, start, advance)
                start = _skip_whole(folder, records, start)
    _write_manifest(folder, settings, records)
    encoded = EncodedPool(folder)
    if pool.on_bad_row == "error" and encoded.refused:  # made when such rows were skipped
        raise encoded.refused[0].as_error()
    return encoded


def _skip_whole(folder: Path, records: list[dict[str, Any]], start: int | None) -> int | None:
    """Collect the records of the whole shards that follow; returns where the next begins, None at the pool's end."""
    while start is not None and (record := _whole_record(folder, len(records), start)):
        records.append(record)
        start = record["next_row"]
    return start


def _encode_from(
    pool: Pool,
    encoder: Encoder,
    folder: Path,
    shard_rows: int,
    records: list[dict[str, Any]],
    start: int,
    advance: Advance,
) -> int | None:
    """Write shards from the row `start` on, up to the pool's end (None) or to a shard that is whole already."""
    for shard in _shards(_items(pool, encoder, start), shard_rows):
        if not shard.accepted:
            raise no_usable_rows(shard.refused)
        record = _write_shard(folder, len(records), sum(done["count"] for done in records), start, shard)
        records.append(record)
        if shard.next_row is None:
            break
        advance(shard.next_row - start)
        start = shard.next_row
        if _whole_record(folder, len(records), start):
            return start
    return None


def _prepare(folder: Path, settings: dict[str, Any]) -> None:
    """Make sure that whatever stands in the folder was made with these settings."""
    path = folder / SETTINGS
    if path.is_file():
        try:
            found = read_json(path)
        except StoreError:
            if (folder / MANIFEST).is_file():
                raise
            found = {}
        if found == settings:
            return
        if (folder / MANIFEST).is_file():
            differing = [key for key in sorted({*found, *settings}) if found.get(key) != settings.get(key)]
            named = "; ".join(
                "the pool's files or how they are read have changed" if key == "pool"
                else f"{key} was {found.get(key)!r}, is now {settings.get(key)!r}" for key in differing
            )  # fmt: skip
            raise StoreError(f"{folder}: holds an encoding made from something else: {named}. Choose another folder.")
    for record in folder.glob("shard-*.json"):
        record.unlink()  # without its record a shard counts as not written; without settings it may be of other rows
    write_record(path, settings)


def _batches(stream: Iterator[Example | Refusal]) -> Iterator[list[Example | Refusal]]:
    """Rows in batches; when the stream fails, first those before the failure, so that the first bad row is reported."""
    batch: list[Example | Refusal] = []
    try:
        for item in stream:
            batch.append(item)
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
    except DataError:
        yield batch
        raise
    yield batch


def _items(pool: Pool, encoder: Encoder, start: int) -> Iterator[Item]:
    """The pool's rows from `start` on, encoded in batches; every row comes out once and in order."""
    for batch in _batches(pool.stream(start)):
        encoded = iter(encoder.encode_batch([item for item in batch if isinstance(item, Example)]))
        for item in batch:
            if isinstance(item, Refusal):
                yield item
                continue
            outcome = next(encoded)
            if not isinstance(outcome, DataError):
                yield item, outcome
                continue
            refusal = Refusal(item.path, item.line, outcome.reason, item.row)
            if pool.on_bad_row == "error":
                raise refusal.as_error()
            yield refusal


def _shards(items: Iterator[Item], shard_rows: int) -> Iterator[_Shard]:
    """Each shard goes up to just before the next accepted row, so that refused rows at the pool's end belong to one."""
    shard = _Shard()
    for item in items:
        if isinstance(item, Refusal):
            shard.refused.append(item)
            continue
        if len(shard.accepted) == shard_rows:
            shard.next_row = item[0].row
            yield shard
            shard = _Shard()
        shard.accepted.append(item)
    yield shard


def _whole_record(folder: Path, number: int, start: int) -> dict[str, Any] | None:
    """The record of a shard that is whole and begins at this row, or None."""
    try:
        record = read_json(record_path(folder, number))
        check_file(tokens_path(folder, number), record["tokens_sha256"])
        check_file(rows_path(folder, number), record["rows_sha256"])
    except (StoreError, KeyError, TypeError):
        return None
    return record if record["first_row"] == start else None


def _write_shard(folder: Path, number: int, first_index: int, start: int, shard: _Shard) -> dict[str, Any]:
    encoded = [entry for _, entry in shard.accepted]
    offsets = np.cumsum([0] + [len(entry.input_ids) for entry in encoded], dtype=np.int64)
    record_path(folder, number).unlink(missing_ok=True)
    tensors = {
        "input_ids": torch.from_numpy(np.concatenate([entry.input_ids for entry in encoded])),
        "response": torch.from_numpy(np.concatenate([entry.response for entry in encoded]).astype(np.uint8)),
        "offsets": torch.from_numpy(offsets),
    }
    write_tensors(tokens_path(folder, number), tensors)
    with atomic_path(rows_path(folder, number)) as partial:
        pq.write_table(_row_table(shard.accepted, first_index), partial)
    record = {
        "count": len(encoded),
        "tokens": int(offsets[-1]),
        "response_tokens": int(tensors["response"].sum(dtype=torch.int64)),
        "first_row": start,
        "next_row": shard.next_row,
        "tokens_sha256": sha256_file(tokens_path(folder, number)),
        "rows_sha256": sha256_file(rows_path(folder, number)),
        "refused": [asdict(refusal) for refusal in shard.refused],
    }
    write_record(record_path(folder, number), record)
    return record


def _row_table(accepted: list[tuple[Example, Encoded]], first_index: int) -> pa.Table:
    rows = [
        {
            "index": index, "row": example.row, "path": example.path, "line": example.line, "source": example.source,
            "length": len(entry.input_ids), "response_length": int(entry.response.sum()),
            "full_length": entry.full_length, "truncated": entry.truncated, "straddling": entry.straddling,
            "text_hash": entry.text_hash, "prompt_hash": entry.prompt_hash,
        }
        for index, (example, entry) in enumerate(accepted, start=first_index)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=ROW_SCHEMA)


def _write_manifest(folder: Path, settings: dict[str, Any], records: list[dict[str, Any]]) -> None:
    refused = [refusal for record in records for refusal in record["refused"]]
    write_json(folder / "refused.json", refused)
    shards = [{key: value for key, value in record.items() if key != "refused"} for record in records]
    write_record(
        folder / MANIFEST,
        {
            "settings": settings,
            "count": sum(record["count"] for record in records),
            "tokens": sum(record["tokens"] for record in records),
            "response_tokens": sum(record["response_tokens"] for record in records),
            "refused": len(refused),
            "shards": shards,
        },
    )
