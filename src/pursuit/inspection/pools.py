"""Counting a pool: rows, refusals, sources, lengths, truncation, duplicates; and choosing examples to show."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pursuit.encoding import EncodedPool, Encoder, duplicate_groups, encode_pool, render_tokens
from pursuit.errors import DataError
from pursuit.inspection.data import (
    Duplicates,
    Lengths,
    PoolView,
    RefusalGroup,
    ShownExample,
    SourceView,
    Truncation,
)
from pursuit.pool import Pool, Refusal
from pursuit.run.tokens import Rows

UNLIMITED = 2**31 - 1  # tokens: no row is cut
BATCH_ROWS = 256  # rows tokenised in one call


def encode_or_refuse(pool: Pool, encoder: Encoder, folder: Path) -> tuple[EncodedPool | None, list[Refusal]]:
    """Encode a pool that skips bad rows; None when no row is usable, which is for the others an error."""
    try:
        encoded = encode_pool(pool, encoder, folder)
    except DataError:
        refused = list(_refusals(pool, encoder))
        if not refused:
            raise
        return None, refused
    return encoded, encoded.refused


def _refusals(pool: Pool, encoder: Encoder) -> Iterator[Refusal]:
    """The refused rows of a pool, in order."""
    stream = pool.stream()
    while batch := list(itertools.islice(stream, BATCH_ROWS)):
        outcomes = iter(encoder.encode_batch([item for item in batch if not isinstance(item, Refusal)]))
        for item in batch:
            if isinstance(item, Refusal):
                yield item
            elif isinstance(outcome := next(outcomes), DataError):
                yield Refusal(item.path, item.line, outcome.reason, item.row)


def view_pool(pool: Pool, encoder: Encoder, encoded: Rows | None, refused: Sequence[Refusal]) -> PoolView:
    """Count a pool's rows.

    Args:
        pool: read again only for the rows that were truncated.
        encoder: the one that encoded it.
        encoded: None when no row is usable.
    """
    usable = 0 if encoded is None else len(encoded)
    bad_rows = sum(refusal.row is not None for refusal in refused)
    view = PoolView(
        rows=usable + bad_rows, usable=usable, refused=len(refused), refusals=group_refusals(refused),
        first_refused=(refused[0].path, refused[0].line) if refused else None,
    )  # fmt: skip
    if encoded is None:
        return view
    return replace(
        view, sources=view_sources(encoded.rows), lengths=view_lengths(encoded.lengths),
        response_lengths=view_lengths(encoded.response_lengths), truncation=view_truncation(pool, encoder, encoded),
        straddling=pc.sum(encoded.rows["straddling"]).as_py(), duplicates=view_duplicates(encoded.rows),
    )  # fmt: skip


def group_refusals(refused: Sequence[Refusal]) -> tuple[RefusalGroup, ...]:
    """Refusals by kind of reason, the most frequent first; equally frequent ones in the pool's order."""
    kinds: dict[str, list[Refusal]] = {}
    for refusal in refused:
        kinds.setdefault(re.sub(r"\d[\d,]*", "#", refusal.reason), []).append(refusal)
    ordered = sorted(kinds.values(), key=lambda group: -len(group))
    return tuple(RefusalGroup(group[0].reason, len(group), group[0].path, group[0].line) for group in ordered)


def view_sources(rows: pa.Table) -> tuple[SourceView, ...]:
    """Sources by rows, the largest first."""
    sums = [("length", "count"), ("length", "sum"), ("response_length", "mean")]
    grouped = rows.group_by("source").aggregate(sums).to_pylist()
    found = [
        SourceView(
            entry["source"], entry["length_count"], entry["length_count"] / rows.num_rows, entry["length_sum"],
            entry["response_length_mean"],
        )
        for entry in grouped
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda source: (-source.rows, source.source)))


def view_lengths(lengths: NDArray[np.int32]) -> Lengths:
    """Figures and histogram of (N,) lengths."""
    powers = np.maximum(np.ceil(np.log2(np.maximum(lengths, 1))), 0).astype(int)  # bin b holds (2^(b-1), 2^b]
    counts = np.bincount(powers)
    bins = range(int(powers.min()), len(counts))
    histogram = tuple((1 if b == 0 else 2 ** (b - 1) + 1, 2**b, int(counts[b])) for b in bins)
    return Lengths(
        int(lengths.min()), float(np.median(lengths)), float(np.percentile(lengths, 95)), int(lengths.max()),
        float(lengths.mean()), int(lengths.sum(dtype=np.int64)), histogram,
    )  # fmt: skip


def view_truncation(pool: Pool, encoder: Encoder, encoded: Rows) -> Truncation:
    """What truncation loses; the truncated rows are encoded once more, whole, to tell response from the rest."""
    cut = encoded.rows.filter(encoded.rows["truncated"])
    if not cut.num_rows:
        return Truncation()
    kept, full = pc.sum(cut["length"]).as_py(), pc.sum(cut["full_length"]).as_py()
    whole = copy(encoder)
    whole.max_length = UNLIMITED
    examples, responses = pool.take(cut["row"].to_pylist()), 0
    while batch := list(itertools.islice(examples, BATCH_ROWS)):
        found = whole.encode_batch(batch)
        responses += sum(int(entry.response.sum()) for entry in found if not isinstance(entry, DataError))
    return Truncation(cut.num_rows, full - kept, responses - pc.sum(cut["response_length"]).as_py())


def view_duplicates(rows: pa.Table) -> Duplicates:
    """Rows with the same text, and rows with the same prompt and another response."""
    groups = duplicate_groups(rows)
    largest = max(groups, key=len, default=None)  # the first of equally large ones
    first = None if largest is None else (rows["path"][largest[0]].as_py(), rows["line"][largest[0]].as_py())
    prompted = rows.filter(pc.is_valid(rows["prompt_hash"]))
    prompts = prompted.group_by("prompt_hash").aggregate([("text_hash", "count_distinct"), ("text_hash", "count")])
    several = prompts.filter(pc.greater(prompts["text_hash_count_distinct"], 1))
    return Duplicates(
        groups=len(groups), extra=sum(len(group) - 1 for group in groups),
        largest=0 if largest is None else len(largest), first=first, prompts=several.num_rows,
        prompt_rows=pc.sum(several["text_hash_count"]).as_py() or 0,
    )  # fmt: skip


def choose_examples(rows: pa.Table, count: int) -> list[int]:
    """Positions of rows to show: in turn from each source, the largest first, and evenly through a source's rows."""
    codes = rows["source"].combine_chunks().dictionary_encode().indices.to_numpy()
    by_code = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]) if len(codes) else []
    groups = sorted(by_code, key=lambda group: (-len(group), int(group[0])))
    shares = [0] * len(groups)
    for turn in itertools.cycle(range(len(groups))):
        if sum(shares) >= min(count, rows.num_rows):
            break
        shares[turn] += shares[turn] < len(groups[turn])
    return [
        int(group[(2 * pick + 1) * len(group) // (2 * share)])
        for group, share in zip(groups, shares, strict=True)
        for pick in range(share)
    ]


def show_examples(encoder: Encoder, encoded: Rows, count: int) -> tuple[ShownExample, ...]:
    """Some rows as the model will see them, spread over the sources; the same ones each time."""
    shown = []
    for index in choose_examples(encoded.rows, count):
        row = encoded.rows.slice(index, 1).to_pylist()[0]
        segments = tuple(render_tokens(encoder.tokenizer, *encoded[index]))
        shown.append(
            ShownExample(
                row["source"], row["path"], row["line"], row["length"], row["response_length"], row["truncated"],
                segments,
            )
        )  # fmt: skip
    return tuple(shown)
