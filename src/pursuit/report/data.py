"""What the report is told: plain values and tables, whoever computed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

Segments = Sequence[tuple[str, bool]]  # a text as the model sees it, in order; True marks what is learnt from


@dataclass(frozen=True, slots=True)
class NeighbourView:
    """The unchosen row that is most similar to a chosen one; similarity is the cosine of their features."""

    index: int
    similarity: float
    source: str
    segments: Segments
    path: str = ""
    line: int | None = None


@dataclass(frozen=True, slots=True)
class ExampleView:
    """One chosen example to read. Unknown cluster: -1; unknown score or loss: NaN; unknown place: "" and None.

    Attributes:
        segments: the example as the model sees it, in order; True marks text that is learnt from (the response).
        reasons: why it was chosen, one sentence each.
        neighbour: the unchosen row most like it.
    """

    rank: int
    index: int
    source: str
    cluster: int
    weight: float
    score: float
    loss: float
    segments: Segments
    path: str = ""
    line: int | None = None
    reasons: Sequence[str] = ()
    neighbour: NeighbourView | None = None


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
    """Two rows that are nearly the same, by their ranks; similarity 1 means identical.

    A row that was not chosen has the rank 0 and is named by its index in the pool.
    """

    a_rank: int
    b_rank: int
    similarity: float
    a_text: str
    b_text: str
    a_index: int = -1
    b_index: int = -1


@dataclass(frozen=True, slots=True)
class MethodPairs:
    """Near-duplicates among the rows that one method takes: how many pairs, and some of them to read."""

    method: str
    total: int
    pairs: Sequence[NearDuplicate] = ()


@dataclass(frozen=True, slots=True)
class DirectionView:
    """One end of a principal direction of the pool's features.

    Attributes:
        name: the direction's number and its end, "2+" or "2−".
        variance: share of the variance that lies along the direction (both ends).
        pool, chosen: share of the sampled pool rows, and of the sampled chosen rows, whose nearest end this is.
        texts: short texts of the rows that lie furthest towards this end.
    """

    name: str
    variance: float
    pool: float
    chosen: float
    texts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class TargetView:
    """One of several targets. Unknown numbers are None.

    Attributes:
        examples: how many rows the target has.
        quota: how many rows were to be chosen for it.
        chosen: how many were.
        residual: ‖residual‖ / ‖target‖ at the end.
    """

    name: str
    examples: int | None
    quota: int | None
    chosen: int
    residual: float | None = None


@dataclass(frozen=True, slots=True)
class AgreementEntry:
    """The same method run again on something else.

    Attributes:
        name: what was different.
        kept: share of the chosen rows that are chosen again.
        nearest: mean cosine of a chosen row with the most similar row of the other choice; NaN where there are no
            features.
    """

    name: str
    kept: float
    nearest: float


@dataclass(frozen=True, slots=True)
class AgreementData:
    """How far the choice depends on what should not matter.

    Attributes:
        between: pairs of these runs, compared with each other instead.
        by_chance: the share that a random choice of the same size keeps.
        nearest_by_chance: `nearest` of a random choice.
        left_out: (what, why) of runs that were not made.
        notes: what the entries mean, a sentence each.
    """

    entries: Sequence[AgreementEntry]
    by_chance: float
    nearest_by_chance: float
    between: Sequence[AgreementEntry] = ()
    left_out: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


class GradientMap(NamedTuple):
    """A sample of the pool in two dimensions; a plain tuple in this order does as well."""

    xy: np.ndarray  # (n, 2)
    chosen: np.ndarray  # (n,) bool
    cluster: np.ndarray  # (n,) int, -1 unknown
    hover: Sequence[str]  # n short texts
    rows: np.ndarray | None = None  # (n,) their places in the pool


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
            response_length, loss, gradient_norm, path, line, target (its name). Only `source` must be there.
        examples: the chosen examples to browse; their number is the caller's choice (a few hundred).
        neighbours_note: among which rows the neighbours of the examples were looked for, a sentence.
        residuals: named curves ‖residual‖ / ‖target‖ by step, for methods with one pursuit over the whole pool.
        step: what a step of these curves is: "step" (adds one row) or "iteration" (changes many at once).
        support_changes: by curve, the rows that entered the choice in each iteration.
        parts: (part, seconds) of the method itself.
        near_duplicates: pairs among the chosen, the most similar first.
        near_duplicates_note: among which chosen rows they were looked for, if not among all.
        method_pairs: near-duplicates that this method and others take, for comparison.
        duplicates_in_pool: examples of the pool that repeat an earlier one exactly; None if nobody looked.
        scripts: (script, rows of the pool, rows of the chosen) counted on a sample; see `scripts_note`.
        refused: (path, line, reason) of rows that could not be used; may be a part of `refused_total`.
        cost: seconds under `selection_seconds`, `subset_training_seconds` and `full_training_seconds`; leave out, or
            None, what is not known.
        price_per_hour: of the machine, in `currency`; None shows no money.
        model: name of the model that gave the features, "" if none.
        features: what the features are: "gradients", "hidden states", or "" for a method that looks at none.
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
    neighbours_note: str = ""
    clusters: Sequence[ClusterView] = ()
    targets: Sequence[TargetView] = ()
    residuals: Mapping[str, Sequence[float]] = field(default_factory=dict)
    step: str = "step"
    support_changes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    parts: Sequence[tuple[str, float]] = ()
    near_duplicates: Sequence[NearDuplicate] = ()
    near_duplicates_note: str = ""
    method_pairs: Sequence[MethodPairs] = ()
    duplicates_in_pool: int | None = None
    map: GradientMap | tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[str]] | None = None
    directions: Sequence[DirectionView] = ()
    scripts: Sequence[tuple[str, int, int]] = ()
    scripts_note: str = ""
    agreement: AgreementData | None = None
    refused: Sequence[tuple[str, int, str]] = ()
    refused_total: int = 0
    cost: Mapping[str, float | None] = field(default_factory=dict)
    price_per_hour: float | None = None
    currency: str = ""
    warnings: Sequence[str] = ()
    model: str = ""
    features: str = "gradients"
