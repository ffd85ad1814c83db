"""What the report is told: plain values and tables, whoever computed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class ExampleView:
    """One chosen example to read. Unknown cluster: -1; unknown score or loss: NaN; unknown place: "" and None.

    Attributes:
        segments: the example as the model sees it, in order; True marks text that is learnt from (the response).
    """

    rank: int
    index: int
    source: str
    cluster: int
    weight: float
    score: float
    loss: float
    segments: Sequence[tuple[str, bool]]
    path: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True)
class ClusterView:
    """One cluster of the pool.

    Attributes:
        size: its examples in the pool.
        budget: how many of them were to be chosen.
        residuals: ‖residual‖ / ‖target‖ after each step of its pursuit; empty if there was none.
    """

    cluster: int
    size: int
    budget: int
    residuals: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """Two chosen examples that are nearly the same, by their ranks; similarity 1 means identical."""

    a_rank: int
    b_rank: int
    similarity: float
    a_text: str
    b_text: str


class GradientMap(NamedTuple):
    """A sample of the pool in two dimensions; a plain tuple in this order does as well."""

    xy: np.ndarray  # (n, 2)
    chosen: np.ndarray  # (n,) bool
    cluster: np.ndarray  # (n,) int, -1 unknown
    hover: Sequence[str]  # n short texts


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """Everything that the page shows.

    Attributes:
        budget: how many examples were asked for.
        pool_size: how many usable examples the pool has.
        settings: resolved settings, nested, JSON-able.
        timings: (stage, seconds, note) in the order they ran.
        pool: a row per pool example, up to 10 million: index, source, length, response_length (tokens), loss (last
            checkpoint, NaN unknown), gradient_norm, cluster (-1 unknown), chosen (bool). Only `source` must be there.
        chosen: the chosen rows in order of choice: index, rank, weight, score, cluster, source, length,
            response_length, loss, gradient_norm, path, line. Only `source` must be there.
        examples: the chosen examples to browse; their number is the caller's choice (a few hundred).
        residuals: named curves ‖residual‖ / ‖target‖ by step, for methods with one pursuit over the whole pool.
        duplicates_in_pool: examples of the pool that repeat an earlier one exactly; None if nobody looked.
        refused: (path, line, reason) of rows that could not be used; may be a part of `refused_total`.
        cost: seconds under `selection_seconds`, `subset_training_seconds` and `full_training_seconds`; leave out, or
            None, what is not known.
        model: name of the model that gave the gradients, "" if none.
    """

    title: str
    method: str
    budget: int
    pool_size: int
    pool: pa.Table
    chosen: pa.Table
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    timings: Sequence[tuple[str, float, str]] = ()
    examples: Sequence[ExampleView] = ()
    clusters: Sequence[ClusterView] = ()
    residuals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    near_duplicates: Sequence[NearDuplicate] = ()
    duplicates_in_pool: int | None = None
    map: GradientMap | tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[str]] | None = None
    refused: Sequence[tuple[str, int, str]] = ()
    refused_total: int = 0
    cost: Mapping[str, float | None] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    model: str = ""
