"""Nearest rows by cosine, for matrices that may be larger than memory."""

from __future__ import annotations

import hashlib
from functools import partial

import faiss
import numpy as np
import torch
from scipy.sparse import csr_matrix

from pursuit.solvers.rows import Matrix, as_rows, check_matrix, map_blocks, pass_rows

EXACT_ROWS = 100_000  # up to so many rows are all compared; beyond, those in the nearest cells
CELLS_PROBED = 32
TRAINING_PER_CELL = 64
QUERY_ROWS = 4096


def unit_sketch(matrix: Matrix, dimension: int, seed: int) -> np.ndarray:
    """(n, min(d, dimension)) float32 unit rows, in memory: projected by random signs where d is larger.

    Each of the d numbers is added with a random sign to one of `dimension` buckets, which keeps inner products but for
    an error of about 1/√dimension. Zero rows stay zero.

    Raises:
        ValueError: NaN or infinity in a row (named), or all rows zero.
    """
    matrix = as_rows(matrix)
    rows, width = check_matrix(matrix, "matrix")
    sketch = np.empty((rows, min(width, dimension)), dtype=np.float32)
    random = np.random.default_rng(seed)
    buckets, signs = random.integers(0, dimension, width), random.choice(np.array([-1, 1], np.float32), width)
    fold = csr_matrix((signs, (buckets, np.arange(width))), shape=(dimension, width))
    sketched = partial(_unit_sketch, fold if width > dimension else None)
    for start, stop, part in map_blocks(matrix, sketched, pass_rows(width)):
        sketch[start:stop] = part
    if not sketch.any():
        raise ValueError("the features are all zero")
    return sketch


def _unit_sketch(fold: csr_matrix | None, rows: np.ndarray, start: int) -> np.ndarray:
    block = np.ascontiguousarray(rows, dtype=np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", block, block, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise ValueError(f"NaN or infinity in the features of row {start + bad[0]}")
    unit = (block / np.where(norms > 0, norms, 1)[:, None]).astype(np.float32)
    if fold is not None:
        unit = (fold @ unit.T).T.astype(np.float32)
        norms = np.linalg.norm(unit, axis=1)
        unit /= np.where(norms > 0, norms, 1)[:, None]
    return unit + np.float32(0)  # no negative zero: equal rows are equal bit by bit


def first_of_equal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are equal bit by bit.

    Returns:
        first: (u,) index of the first row of each kind, ascending; kind: (n,) its number for every row.
    """
    seen: dict[bytes, int] = {}
    first: list[int] = []
    kind = np.empty(len(rows), dtype=np.int64)
    for place, row in enumerate(np.ascontiguousarray(rows)):
        kind[place] = seen.setdefault(hashlib.blake2b(row.data, digest_size=16).digest(), len(first))
        if kind[place] == len(first):
            first.append(place)
    return np.array(first, dtype=np.int64), kind


def nearest_neighbours(unit_rows: np.ndarray | torch.Tensor, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows most similar to each row, itself not counted, the most similar first (faiss).

    Up to 100,000 rows the search is exact, O(n² d); beyond, each row is compared with those in the 32 nearest of about
    4√n cells (inverted lists, Jégou, Douze and Schmid 2011), O(n^1.5 d). The rows are in memory: `unit_sketch` folds a
    matrix that is larger to fewer numbers a row.

    Args:
        unit_rows: (n, d), numpy or torch.
        neighbours: how many; lowered to n − 1.

    Returns:
        indices (n, m) int64, −1 where fewer were found; cosines (n, m) float32, at most 1 and 0 at such places.
    """
    unit_rows = np.ascontiguousarray(as_rows(unit_rows)[:], dtype=np.float32)
    rows = len(unit_rows)
    m = max(0, min(neighbours, rows - 1))
    index = _index(unit_rows)
    found, cosines = np.full((rows, m), -1, dtype=np.int64), np.zeros((rows, m), dtype=np.float32)
    for start in range(0, rows if m else 0, QUERY_ROWS):
        similar, near = index.search(unit_rows[start : start + QUERY_ROWS], m + 1)
        own = near == np.arange(start, start + len(near))[:, None]
        own[~own.any(axis=1), -1] = True  # lost among equal rows: the last gives way
        found[start : start + len(near)] = near[~own].reshape(len(near), m)
        cosines[start : start + len(near)] = similar[~own].reshape(len(near), m)
    cosines[found < 0] = 0
    return found, np.minimum(cosines, 1)


def _index(unit_rows: np.ndarray) -> faiss.Index:
    rows, width = unit_rows.shape
    if rows <= EXACT_ROWS:
        exact = faiss.IndexFlatIP(width)
        exact.add(unit_rows)
        return exact
    cells = int(4 * rows**0.5)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(0).permutation(rows)[: TRAINING_PER_CELL * cells]
    index.train(unit_rows[np.sort(sample)])
    index.nprobe = CELLS_PROBED
    index.add(unit_rows)
    return index
