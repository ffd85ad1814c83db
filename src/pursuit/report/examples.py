"""Texts of the chosen examples for the page: cut to a common size, compared pair by pair."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from pursuit.report.data import ExampleView, NearDuplicate, NeighbourView
from pursuit.report.text import count, known, visible

ALL_TEXT_BYTES = 3_000_000  # of all examples together: what keeps the page small enough to send
ONE_TEXT_BYTES = 20_000
PAIR_CHARACTERS = 700  # of each side of a near-duplicate
PAIR_LEAD = 120  # characters kept before the first difference

Side = list[tuple[str, bool]]  # (text, differs)


def example_records(examples: Sequence[ExampleView]) -> list[dict[str, Any]]:
    """JSON-able records for the browser; a segment is [text, is_response, note on what was left out after it]."""
    room = min(ONE_TEXT_BYTES, ALL_TEXT_BYTES // max(1, len(examples)))
    return [
        {
            "rank": int(example.rank), "index": int(example.index), "source": visible(example.source or ""),
            "cluster": int(example.cluster), "weight": _finite(example.weight), "score": _finite(example.score),
            "loss": _finite(example.loss), "path": visible(example.path or ""),
            "line": None if example.line is None else int(example.line), "segments": clip(example.segments, room),
            "reasons": [visible(reason) for reason in example.reasons],
            "neighbour": None if example.neighbour is None else _neighbour(example.neighbour, room // 2),
        }
        for example in examples
    ]  # fmt: skip


def _neighbour(view: NeighbourView, room: int) -> dict[str, Any]:
    return {
        "index": int(view.index), "source": visible(view.source or ""), "path": visible(view.path or ""),
        "line": None if view.line is None else int(view.line), "similarity": _finite(view.similarity),
        "segments": clip(view.segments, room),
    }  # fmt: skip


def _finite(value: float | None) -> float | None:
    return float(f"{value:.6g}") if known(value) else None


def clip(segments: Sequence[tuple[str, bool]], room: int) -> list[list[Any]]:
    """Cut the longest segments to one common length so that all together take about `room` bytes.

    A cut segment keeps its beginning and its end, so that a short response after a long prompt stays whole.
    """
    sizes = sorted(len(text.encode("utf-8", "replace")) for text, _ in segments)
    limit, left = float("inf"), room
    for place, size in enumerate(sizes):
        share = left / (len(sizes) - place)
        if size > share:
            limit = share
            break
        left -= size
    records: list[list[Any]] = []
    for text, response in segments:
        size = len(text.encode("utf-8", "replace"))
        if size <= limit:
            records.append([visible(text), int(response), ""])
            continue
        half = max(20, int(len(text) * limit / size / 2))
        left_out = max(0, len(text) - 2 * half)
        records.append([visible(text[:half]), int(response), f" [{count(left_out)} characters left out here] "])
        records.append([visible(text[-half:]), int(response), ""])
    return records


def compared(pair: NearDuplicate) -> tuple[Side, Side]:
    """Both texts around their first difference, in parts that are marked where their words differ."""
    letters = enumerate(zip(pair.a_text, pair.b_text, strict=False))
    first = next((place for place, (a, b) in letters if a != b), min(len(pair.a_text), len(pair.b_text)))
    start = (
        0 if pair.a_text == pair.b_text or first <= 2 * PAIR_LEAD else pair.a_text.rfind(" ", 0, first - PAIR_LEAD) + 1
    )
    a_words, b_words = _words(pair.a_text, start), _words(pair.b_text, start)
    a_side: Side = []
    b_side: Side = []
    for kind, a_from, a_to, b_from, b_to in SequenceMatcher(None, a_words, b_words, autojunk=False).get_opcodes():
        for side, words in ((a_side, a_words[a_from:a_to]), (b_side, b_words[b_from:b_to])):
            if words:
                side.append((visible("".join(words)), kind != "equal"))
    return a_side, b_side


def _words(text: str, start: int) -> list[str]:
    window = text[start : start + PAIR_CHARACTERS]
    cut = ("… " if start else "") + window + (" …" if start + PAIR_CHARACTERS < len(text) else "")
    return re.findall(r"\w+|\s+|[^\w\s]", cut)
