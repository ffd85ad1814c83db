"""Gradient space in few directions: the map, and what its main directions tell apart."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse.linalg import svds

from pursuit.overview.texts import Texts
from pursuit.report import DirectionView, GradientMap
from pursuit.selectors import Selection
from pursuit.store.features import Features

SAMPLED = 2_400  # rows looked at, a third of them chosen ones
DIRECTIONS = 5
FURTHEST = 3  # rows shown of an end


class Sample(NamedTuple):
    """Random rows of the pool and random chosen rows, each ascending, and all of them together."""

    pool: np.ndarray
    chosen: np.ndarray
    rows: np.ndarray


class Directions(NamedTuple):
    """Principal directions of the sampled rows around their mean.

    Attributes:
        mean: (d,); axes: (directions, d) unit rows; values: (directions,) singular values, descending.
        coordinates: (rows of the sample, directions) of the sample.
        total: squared length of all sampled rows around their mean.
    """

    mean: np.ndarray
    axes: np.ndarray
    values: np.ndarray
    coordinates: np.ndarray
    total: float

    def nearest(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(end of each row, its cosine): end 2j is the positive end of direction j, 2j + 1 the negative one."""
        centred = rows - self.mean
        coordinates = centred @ self.axes.T
        ends = ends_of(coordinates)
        lengths = np.linalg.norm(centred, axis=1)
        cosines = np.abs(coordinates[np.arange(len(rows)), ends // 2]) / np.where(lengths > 0, lengths, 1)
        return ends, cosines


def sample_rows(selection: Selection, pool: np.ndarray) -> Sample:
    """The same rows each time; `pool` are the rows that were chosen from."""
    generator = np.random.default_rng(0)
    share = min(len(selection), SAMPLED // 3)
    chosen = np.sort(generator.permutation(selection.indices)[:share])
    random = np.sort(generator.permutation(pool)[: SAMPLED - share])
    return Sample(random, chosen, np.union1d(chosen, random))


def directions_of(features: Features, rows: np.ndarray) -> Directions | None:
    """None where there are too few rows or dimensions, or nothing varies."""
    if features.dimension < 3 or len(rows) < 4:
        return None
    points = np.asarray(features.average()[rows], np.float32)
    mean = points.mean(axis=0, dtype=np.float64)
    points -= mean.astype(np.float32)
    total = float(np.einsum("ij,ij->", points, points, dtype=np.float64))
    if not np.isfinite(total) or total <= 1e-12:
        return None
    left, values, right = svds(points, k=min(DIRECTIONS, min(points.shape) - 1), v0=np.ones(min(points.shape)))
    left, values, right = left[:, ::-1].astype(np.float64), values[::-1].astype(np.float64), right[::-1]
    # the side on which rows reach further is the positive end; svds leaves the sign open
    signs = np.where(np.sum(left**3, axis=0) < 0, -1.0, 1.0)
    return Directions(mean, right.astype(np.float64) * signs[:, None], values, left * values * signs, total)


def ends_of(coordinates: np.ndarray) -> np.ndarray:
    """The end, over all directions, towards which a row lies most."""
    nearest = np.abs(coordinates).argmax(axis=1)
    return 2 * nearest + (coordinates[np.arange(len(coordinates)), nearest] < 0)


def end_name(end: int) -> str:
    """1+, 1−, 2+, …"""
    return f"{end // 2 + 1}{'−' if end % 2 else '+'}"


def gradient_map(selection: Selection, features: Features, texts: Texts) -> GradientMap | None:
    """A random sample of the pool and of the chosen rows on the first two principal axes of their features."""
    sample = sample_rows(selection, np.arange(features.num_rows))
    found = directions_of(features, sample.rows)
    return None if found is None else map_of(selection, sample.rows, found, texts)


def map_of(selection: Selection, rows: np.ndarray, found: Directions, texts: Texts) -> GradientMap:
    """The map of rows whose directions are known."""
    cluster = np.full(selection.num_rows, -1)
    if selection.clusters is not None:
        cluster[selection.indices] = selection.clusters
    xy = found.coordinates[:, :2] / found.values[0]
    hover = [texts.short(int(row)) for row in rows]
    return GradientMap(xy, np.isin(rows, selection.indices), cluster[rows], hover, rows)


def direction_views(sample: Sample, found: Directions, texts: Texts) -> list[DirectionView]:
    """Both ends of every direction: share of the variance, of the pool and of the chosen, and the furthest rows."""
    ends = ends_of(found.coordinates)
    shares = [
        np.bincount(ends[np.isin(sample.rows, part)], minlength=2 * len(found.axes)) / max(1, len(part))
        for part in (sample.pool, sample.chosen)
    ]
    views = []
    for end in range(2 * len(found.axes)):
        along = found.coordinates[:, end // 2] * (-1 if end % 2 else 1)
        furthest = [texts.short(int(sample.rows[place])) for place in np.argsort(-along, kind="stable")[: 4 * FURTHEST]]
        views.append(
            DirectionView(
                end_name(end), float(found.values[end // 2] ** 2 / found.total), float(shares[0][end]),
                float(shares[1][end]), list(dict.fromkeys(furthest))[:FURTHEST],
            )
        )  # fmt: skip
    return views
