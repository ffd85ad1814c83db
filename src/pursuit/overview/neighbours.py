"""Rows that resemble each other: near-duplicates among the chosen, and the nearest rows that were not chosen."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np

from pursuit.report import NearDuplicate
from pursuit.selectors import Selection
from pursuit.solvers.neighbours import unit_sketch
from pursuit.solvers.rows import RowView
from pursuit.store.features import Features

NEAR = 0.95  # cosine of the features from which two rows count as near-duplicates
COMPARED = 20_000  # chosen rows, in order of choice, among which near-duplicates are looked for
PAIRS_KEPT, PAIRS_READ = 1_000, 40  # pairs that are counted, and those of them that come with their text
PAIR_SKETCH = 128  # numbers a row for finding pairs; a cosine near 1 is kept to a tenth of its distance from 1
SKETCH = 512  # numbers a row for finding neighbours, of which the SHORTLIST best are compared exactly
SHORTLIST = 8
BLOCK_NUMBERS = 1 << 23  # in memory at once
CANDIDATES, CANDIDATE_NUMBERS = 50_000, 100_000_000  # bounds on the rows, and on their numbers, that are searched


def near_duplicates(selection: Selection, features: Features, texts: Callable[[int], str]) -> list[NearDuplicate]:
    """Pairs of chosen rows whose features have a cosine of at least `NEAR`, most alike first.

    Only each row's four nearest are looked at, among the first `COMPARED`; the first `PAIRS_READ` bring their texts.
    """
    indices = selection.indices[:COMPARED]
    if features.dimension == 0 or len(indices) < 2:
        return []
    sketch = _sketch(features, indices, PAIR_SKETCH)
    if sketch is None:
        return []
    finder = faiss.IndexFlatIP(sketch.shape[1])
    finder.add(sketch)
    similarity, neighbour = finder.search(sketch, min(5, len(indices)))
    first, place = np.nonzero((similarity >= 1 - 2 * (1 - NEAR)) & (neighbour >= 0))
    pairs = np.sort(np.stack([first, neighbour[first, place]], axis=1), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    found = sorted(
        (-cosine, int(a), int(b))
        for cosine, (a, b) in zip(_cosines(features, indices[pairs]), pairs, strict=True)
        if cosine >= NEAR
    )[:PAIRS_KEPT]

    def text(place: int, position: int) -> str:
        return texts(int(indices[position])) if place < PAIRS_READ else ""

    return [
        NearDuplicate(a + 1, b + 1, -cosine, text(place, a), text(place, b), int(indices[a]), int(indices[b]))
        for place, (cosine, a, b) in enumerate(found)
    ]


def unchosen_neighbours(
    selection: Selection, features: Features, shown: np.ndarray, pool: np.ndarray | None = None
) -> tuple[dict[int, tuple[int, float]], str]:
    """For rows of the pool, the most similar rows that were not chosen.

    Args:
        shown: rows of the pool.
        pool: (N,) bool, the rows that were chosen from; all of them without.

    Returns:
        By row of `shown`, the neighbour and its cosine; and a sentence that says where they were looked for, empty
        where it was among all rows.
    """
    every = np.arange(features.num_rows) if pool is None else np.flatnonzero(pool)
    others = np.setdiff1d(every, selection.indices, assume_unique=True)
    if features.dimension == 0 or not len(others) or not len(shown):
        return {}, ""
    numbers = features.dimension * features.num_checkpoints
    most = max(1_000, min(CANDIDATES, CANDIDATE_NUMBERS // numbers))
    note = ""
    if len(others) > most:
        note = f"It was looked for in a random {most:,} of the {len(others):,} others."
        others = np.sort(np.random.default_rng(0).permutation(others)[:most])
    candidates, rows = _sketch(features, others, SKETCH), _sketch(features, shown, SKETCH)
    if candidates is None or rows is None:
        return {}, note
    finder = faiss.IndexFlatIP(candidates.shape[1])
    finder.add(candidates)
    _, places = finder.search(rows, min(SHORTLIST, len(others)))
    pairs = np.stack([np.repeat(shown, places.shape[1]), others[places.ravel()]], axis=1)
    cosines = _cosines(features, pairs).reshape(places.shape)
    best = cosines.argmax(axis=1)
    return {
        int(row): (int(others[places[number, place]]), float(cosines[number, place]))
        for number, (row, place) in enumerate(zip(shown, best, strict=True))
        if cosines[number, place] > 0
    }, note


def nearest_targets(features: Features, target: Features, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row of the target, cosine) that is most similar to each row of the pool, among 2,000 of the target's rows."""
    some = np.sort(np.random.default_rng(0).permutation(target.num_rows)[:2_000])
    goals, rows = unit(target.average()[some]), unit(features.average()[shown])
    cosines = rows @ goals.T
    best = cosines.argmax(axis=1)
    return some[best], cosines[np.arange(len(rows)), best]


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length; zero rows stay zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)


def _sketch(features: Features, rows: np.ndarray, dimension: int) -> np.ndarray | None:
    """Unit rows in few dimensions; None where all are zero or some are not finite."""
    try:
        return unit_sketch(RowView(features.average(), rows), dimension, 0)
    except ValueError:
        return None


def _cosines(features: Features, pairs: np.ndarray) -> np.ndarray:
    """(p,) cosines of pairs of rows (p, 2), at most 1."""
    cosines = np.empty(len(pairs))
    block = max(16, BLOCK_NUMBERS // features.dimension)
    for start in range(0, len(pairs), block):
        part = pairs[start : start + block]
        needed, places = np.unique(part, return_inverse=True)
        rows = unit(features.average()[needed])
        a, b = places.reshape(part.shape).T
        cosines[start : start + block] = np.einsum("ij,ij->i", rows[a], rows[b], dtype=np.float64)
    return np.minimum(cosines, 1.0)
