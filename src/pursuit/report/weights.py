"""The weights of the chosen rows, as a whole and by group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pursuit.report.data import ReportData
from pursuit.report.summary import column

GROUPS = (("source", "source"), ("target", "target"), ("cluster", "cluster"))  # column, how a person calls it
MOST_GROUPS = 200


@dataclass(frozen=True, slots=True)
class GroupWeight:
    """A group of chosen rows: how many, and its shares of the rows and of the weight."""

    group: str
    rows: int
    row_share: float
    weight_share: float


@dataclass(frozen=True, slots=True)
class WeightSummary:
    """The weights together.

    Attributes:
        effective: (Σw)² / Σw², the number of equally weighted rows that would count as much (Kish).
        zero: rows of weight 0.
        top_tenth: share of the weight on the heaviest tenth of the rows.
        rows, weight: the curve from the heaviest row on: share of the rows, share of the weight.
        groups: for every column that groups the rows, its groups, the heaviest first.
    """

    effective: float
    zero: int
    top_tenth: float
    rows: np.ndarray
    weight: np.ndarray
    groups: dict[str, list[GroupWeight]]


def weight_summary(data: ReportData) -> WeightSummary | None:
    """None where all weights are equal, or none are known."""
    weights = column(data.chosen, "weight")
    if weights is None or not np.isfinite(weights).all() or weights.min() < 0 or weights.max() == weights.min():
        return None
    total = float(weights.sum())
    heaviest = np.sort(weights)[::-1].cumsum() / total
    return WeightSummary(
        effective=total**2 / float(np.square(weights).sum()),
        zero=int(np.count_nonzero(weights == 0)),
        top_tenth=float(heaviest[max(1, round(len(weights) / 10)) - 1]),
        rows=np.arange(1, len(weights) + 1) / len(weights),
        weight=heaviest,
        groups={name: groups for key, name in GROUPS if (groups := _by_group(data, key, weights, total))},
    )


def _by_group(data: ReportData, key: str, weights: np.ndarray, total: float) -> list[GroupWeight]:
    if key not in data.chosen.column_names:
        return []
    names = np.array([str("" if name is None else name) for name in data.chosen[key].to_pylist()], dtype=object)
    groups, codes = np.unique(names.astype(str), return_inverse=True)
    if len(groups) < 2:
        return []
    rows, weight = np.bincount(codes), np.bincount(codes, weights)
    found = [
        GroupWeight(str(group), int(rows[code]), rows[code] / len(weights), float(weight[code] / total))
        for code, group in enumerate(groups)
    ]
    return sorted(found, key=lambda item: (-item.weight_share, item.group))[:MOST_GROUPS]
