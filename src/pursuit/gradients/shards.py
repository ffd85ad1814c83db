"""Filling a feature store: what the pass for gradients and the pass for embeddings share.

The unit of work is one shard at one checkpoint. Batches are planned within a shard, so a pass that was killed, or split
over several machines, makes the same batches and the same bits. A kill loses a minute: of a longer shard the finished
rows are kept.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pursuit.batches import EncodedRows, plan_batches
from pursuit.devices import free_cached_memory, out_of_memory
from pursuit.errors import DataError, StoreError
from pursuit.files import fingerprint, one_at_a_time, read_json, write_record
from pursuit.progress import Advance, progress, say
from pursuit.store.codecs import empty_rows, encode
from pursuit.store.features import FeatureStore
from pursuit.store.shard_files import UnfinishedShard

Compute = Callable[[list[int]], Mapping[str, Tensor]]  # rows of one batch → the store's tensors for them


def begin_store(
    folder: Path, num_rows: int, dimension: int, weights: Sequence[float], *, dtype: str, shard_rows: int,
    provenance: Mapping[str, Any],
) -> FeatureStore:  # fmt: skip
    """Open the store in a folder, or begin one.

    Raises:
        StoreError: the folder holds features made with other settings (each difference is named).
    """
    manifest = {
        "format": 1, "num_rows": num_rows, "dimension": dimension, "dtype": dtype, "weights": list(weights),
        "shard_rows": shard_rows, "provenance": dict(provenance), "provenance_digest": fingerprint(provenance),
    }  # fmt: skip
    path = folder / "manifest.json"
    with one_at_a_time(folder):
        if path.exists():
            refuse_other_settings(folder, read_json(path), manifest)
        else:
            write_record(path, manifest)
    return FeatureStore(folder)


def refuse_other_settings(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise a StoreError that names each setting in which a store differs from what is asked for."""
    old, new = _flat(found), _flat(wanted)
    differences = [
        f"{name}: the store has {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name != "provenance_digest"
    ]
    if differences:
        raise StoreError(
            f"{folder}: made with other settings, so it cannot be used for these.\n  " + "\n  ".join(differences)
            + "\nChoose another run folder, or delete this one to make it anew."
        )  # fmt: skip


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat


def fill_store(
    store: FeatureStore, encoded: EncodedRows, at: Callable[[int], Compute], batch_tokens: int, *,
    shards: Iterable[int] | None = None, describe: str,
) -> None:  # fmt: skip
    """Make the shards that are missing, checkpoint by checkpoint; what already stands whole is kept.

    Args:
        at: prepares a checkpoint, and gives the function that makes one batch's tensors at it.
        batch_tokens: padded tokens a batch, which bounds the memory.
        shards: only these shard numbers; all without.
    """
    wanted = None if shards is None else set(shards)
    missing = store.missing(wanted)
    mine = [store.shard_range(shard) for shard in range(store.num_shards) if wanted is None or shard in wanted]
    total = store.num_checkpoints * sum(map(len, mine))
    prepared, compute = -1, None
    with progress(describe, total, "rows", done=total - store.rows_left(missing)) as advance:
        for checkpoint, shard in missing:
            if checkpoint != prepared:
                compute = None  # its moments go before those of the next one come
                compute = at(checkpoint)
                prepared = checkpoint
            assert compute is not None
            make_shard(store, checkpoint, shard, encoded, compute, batch_tokens, advance)


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """Python's garbage collector looks through new objects only: to go over all that torch and transformers have made
    takes it longer than a GPU needs for a batch."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@old_objects_left_alone()
def make_shard(
    store: FeatureStore, checkpoint: int, shard: int, encoded: EncodedRows, compute: Compute, batch_tokens: int,
    advance: Advance,
) -> None:  # fmt: skip
    """Make one shard and write it; where memory runs out, the rest of it goes on in batches of half the size.

    What is made of it is kept now and then, and an earlier start's rows are not made again; the others are in the
    batches that they would have been in without it. The next shard begins with full batches, as it would after a kill.
    """
    rows, manifest = store.shard_range(shard), store.manifest
    count = len(rows)
    tensors = {
        **empty_rows(count, manifest["dimension"], manifest["dtype"]),
        "norms": torch.empty(count), "gradient_norms": torch.empty(count), "losses": torch.empty(count),
    }  # fmt: skip
    unfinished = UnfinishedShard(store.shard_path(checkpoint, shard), tensors, manifest["provenance_digest"])
    pending = _left(rows, encoded, batch_tokens, unfinished)[::-1]
    while pending:
        batch = pending.pop()
        try:
            found: Mapping[str, Tensor] | None = compute(batch)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            unfinished.limits.append(_half_of(batch, encoded, error))
            found = None
        if found is None:  # now that the error is gone, and what it holds of the batch
            free_cached_memory()
            pending = _left(rows, encoded, batch_tokens, unfinished)[::-1]
            continue
        places = torch.tensor([row - rows.start for row in batch])
        for name, values in {**found, **encode(found["features"], manifest["dtype"])}.items():
            tensors[name][places] = values.to(tensors[name].dtype)
        unfinished.made(places)
        advance(len(batch))
    store.write(checkpoint, shard, tensors)


def _left(rows: range, encoded: EncodedRows, batch_tokens: int, unfinished: UnfinishedShard) -> list[list[int]]:
    """The batches that are still to be made: a function of what is made and where memory ran out, and so the same after
    a kill. What memory did not suffice for, and what came after it, is cut anew each time.
    """

    def is_left(row: int) -> bool:
        return not unfinished.done[row - rows.start]

    batches = plan_batches(rows, encoded.lengths, batch_tokens)
    for most in unfinished.limits:
        batches = [
            part for batch in batches if any(map(is_left, batch))
            for part in plan_batches(batch, encoded.lengths, most)
        ]  # fmt: skip
    return [left for batch in batches if (left := list(filter(is_left, batch)))]


def _half_of(batch: list[int], encoded: EncodedRows, error: BaseException) -> int:
    """Padded tokens of half of a batch that memory does not suffice for."""
    if len(batch) == 1:
        raise row_error(
            encoded, batch[0], f"{encoded.lengths[batch[0]]} tokens do not fit in memory; lower --max-length"
        ) from error
    say(f"out of memory with {len(batch)} rows of {encoded.lengths[batch[0]]} tokens: going on with half as many")
    return len(batch) // 2 * int(encoded.lengths[batch].max())


def row_error(encoded: EncodedRows, row: int, reason: str) -> DataError:
    """A DataError that names the row's file and line, where they are known."""
    table = getattr(encoded, "rows", None)
    if table is None:
        return DataError(f"row {row}: {reason}")
    return DataError(reason, path=table["path"][row].as_py(), line=table["line"][row].as_py())
