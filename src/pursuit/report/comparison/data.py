"""What the comparison page is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

RANDOM, FULL = "random", "full"  # names with a meaning: the baseline, and training on the whole pool


class Interval(NamedTuple):
    """A mean over seeds and its 95% interval; NaN where one seed gives none."""

    mean: float
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there is an interval around the mean."""
        return math.isfinite(self.low) and math.isfinite(self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodScore:
    """One method at one budget, over its seeds.

    Attributes:
        budget: share of the pool, above 0; 1 is all of it.
        rows: how many rows that is.
        seeds: how many runs the mean is over.
        to_random: difference to random at the same budget, paired by seed; None where there is none.
        gain_kept: (score − untrained) / (full − untrained), 1 is all that the full pool gains; None if not known,
            or where the full pool's gain is not told from nothing.
        selection_seconds, training_seconds: mean of the runs; None if not known.
        families: score of every family of the evaluation.
    """

    method: str
    budget: float
    rows: int
    seeds: int
    score: Interval
    to_random: Interval | None = None
    gain_kept: float | None = None
    selection_seconds: float | None = None
    training_seconds: float | None = None
    families: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Selection and training together; without a known time of the selection, training alone."""
        if self.training_seconds is None:
            return None
        return self.training_seconds + (self.selection_seconds or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricScores:
    """All methods on one metric.

    Attributes:
        name, unit: "exact match", "share of rows" for example.
        scores: a row a method and budget, also of `random`.
        untrained: score of the model before any training.
        full: score after training on the whole pool, as a method named `full`.
    """

    name: str
    scores: Sequence[MethodScore]
    unit: str = ""
    higher_is_better: bool = True
    untrained: float | None = None
    full: MethodScore | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareData:
    """Everything that the comparison page shows.

    Attributes:
        metrics: the most important first: it gives the overview and the chart of cost.
        model: the model that was trained; select_model: the one that gave the gradients, if another.
        evaluation: what it was evaluated on, in words.
        runs: a row a finished run (method, budget, seed, score, …), to look things up.
        failed: (what, why) of runs without a result.
        price_per_hour: of the machine, in `currency`; None shows no money.
        settings, versions, warnings: as in `ReportData`.
    """

    title: str
    metrics: Sequence[MetricScores]
    model: str = ""
    select_model: str = ""
    evaluation: str = ""
    pool_size: int | None = None
    runs: pa.Table | None = None
    failed: Sequence[tuple[str, str]] = ()
    price_per_hour: float | None = None
    currency: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
