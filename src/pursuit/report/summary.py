"""The numbers of the report: aggregates of tables that may have millions of rows."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pursuit.report.data import ClusterView, ReportData
from pursuit.report.text import known

QUANTITIES = (  # column, title, unit, whole numbers
    ("length", "Length", "tokens", True),
    ("response_length", "Length of the response", "tokens", True),
    ("loss", "Loss at the last checkpoint", "nats per token", False),
    ("gradient_norm", "Gradient norm", "before scaling to one", False),
)
COSTS = ("selection_seconds", "subset_training_seconds", "full_training_seconds")
FEWEST_BINS, MOST_BINS = 10, 40
LOG_RATIO = 50  # a spread of more than this between the 0.1% and 99.9% quantiles is drawn on a log axis


@dataclass(frozen=True, slots=True)
class SourceShare:
    """One source: examples in the pool and among the chosen, and their shares."""

    source: str
    pool: int
    chosen: int
    pool_share: float
    chosen_share: float

    @property
    def factor(self) -> float:
        """Share among the chosen over share in the pool: 1 is proportional, NaN when the pool has none."""
        return self.chosen_share / self.pool_share if self.pool_share else float("nan")


@dataclass(frozen=True, slots=True)
class Spread:
    """Where the values of one column lie; `unknown` counts those without a number."""

    mean: float
    p5: float
    median: float
    p95: float
    unknown: int


@dataclass(frozen=True, slots=True)
class Distribution:
    """One quantity in the pool and among the chosen, in common bins.

    The first and the last bin also hold what lies beyond them. `edges` is empty when all values are equal.
    """

    column: str
    title: str
    unit: str
    pool: Spread
    chosen: Spread
    edges: np.ndarray  # (bins + 1,)
    pool_share: np.ndarray  # (bins,), sums to 1
    chosen_share: np.ndarray  # (bins,), sums to 1
    log: bool


@dataclass(frozen=True, slots=True)
class ClusterRow:
    """One cluster as a row of the table."""

    view: ClusterView
    chosen: int
    top_source: str  # of its members; of its chosen members where the pool's clusters are not known
    top_share: float


def column(table: pa.Table, name: str) -> np.ndarray | None:
    """A numeric column as float64 with NaN for missing values; None if it is not there or holds no number."""
    if name not in table.column_names or table.num_rows == 0:
        return None
    values = np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)
    return values if np.isfinite(values).any() else None


def source_shares(data: ReportData) -> list[SourceShare]:
    """Every source of the pool, the largest first."""
    pool, chosen = _counts(data.pool["source"]), _counts(data.chosen["source"])
    pool_total, chosen_total = max(1, pool.total()), max(1, chosen.total())
    shares = [
        SourceShare(name, pool[name], chosen[name], pool[name] / pool_total, chosen[name] / chosen_total)
        for name in pool | chosen
    ]
    return sorted(shares, key=lambda share: (-share.pool, -share.chosen, share.source))


def _counts(names: pa.ChunkedArray) -> Counter[str]:
    counts: Counter[str] = Counter()
    for entry in pc.value_counts(names.cast(pa.string())):
        counts[entry["values"].as_py() or ""] += entry["counts"].as_py()
    return counts


def spread(values: np.ndarray) -> Spread:
    """Mean and quantiles of the finite values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return Spread(math.nan, math.nan, math.nan, math.nan, len(values))
    p5, median, p95 = np.quantile(finite, [0.05, 0.5, 0.95])
    return Spread(float(finite.mean()), float(p5), float(median), float(p95), len(values) - len(finite))


def distributions(data: ReportData) -> list[Distribution]:
    """The quantities that are known both for the pool and for the chosen."""
    found = []
    for name, title, unit, whole in QUANTITIES:
        pool, chosen = column(data.pool, name), column(data.chosen, name)
        if pool is None or chosen is None:
            continue
        edges, log = bin_edges(pool[np.isfinite(pool)], whole, data.chosen.num_rows)
        shares = _shares(pool, edges), _shares(chosen, edges)
        found.append(Distribution(name, title, unit, spread(pool), spread(chosen), edges, *shares, log))
    return found


def bin_edges(values: np.ndarray, whole: bool, chosen: int) -> tuple[np.ndarray, bool]:
    """Bins for finite `values`, and whether they are even on a log axis; no bins if all values are equal.

    The fewer are chosen, the wider the bins: 1.5 √chosen of them, between 10 and 40. Whole numbers get edges between
    them (at halves), so that no bin is empty only for want of a number in it.
    """
    low, high = np.quantile(values, [0.001, 0.999])
    if low == high:
        low, high = values.min(), values.max()
    if low == high:
        return np.empty(0), False
    log = bool(low > 0 and high / low > LOG_RATIO)
    if whole:
        low, high = max(np.floor(low) - 0.5, 0.5 if log else -np.inf), np.ceil(high) + 0.5
    bins = int(np.clip(1.5 * math.sqrt(chosen), FEWEST_BINS, MOST_BINS))
    edges = np.geomspace(low, high, bins + 1) if log else np.linspace(low, high, bins + 1)
    if whole:
        edges = np.unique(np.floor(edges) + 0.5)
    return edges, log


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    if not len(edges):
        return np.empty(0)
    inside = np.clip(values[np.isfinite(values)], edges[0], edges[-1])
    counts, _ = np.histogram(inside, edges)
    return counts / max(1, counts.sum())


def cluster_rows(data: ReportData) -> list[ClusterRow]:
    """Every cluster with what was chosen from it and its most frequent source, the largest cluster first."""
    if not data.clusters:
        return []
    clusters = column(data.chosen, "cluster")
    chosen = Counter() if clusters is None else Counter(clusters.astype(np.int64).tolist())
    top = _top_sources(data.pool if clusters_known(data) else data.chosen)
    rows = [
        ClusterRow(view, chosen[view.cluster], *top.get(view.cluster, ("", float("nan")))) for view in data.clusters
    ]
    return sorted(rows, key=lambda row: (-row.view.size, row.view.cluster))


def clusters_known(data: ReportData) -> bool:
    """Whether the cluster is known of rows that were not chosen."""
    values = column(data.pool, "cluster")
    return values is not None and np.count_nonzero(values >= 0) > data.chosen.num_rows


def _top_sources(pool: pa.Table) -> dict[int, tuple[str, float]]:
    if "cluster" not in pool.column_names:
        return {}
    table = pool.select(["cluster", "source"]).group_by(["cluster", "source"]).aggregate([([], "count_all")])
    members: dict[int, Counter[str]] = {}
    for row in table.to_pylist():
        members.setdefault(row["cluster"], Counter())[row["source"] or ""] = row["count_all"]
    best = {}
    for cluster, counts in members.items():
        source, most = min(counts.items(), key=lambda item: (-item[1], item[0]))
        best[cluster] = (source, most / counts.total())
    return best


def token_share(data: ReportData) -> float | None:
    """Tokens of the chosen over tokens of the pool, if lengths are known."""
    pool, chosen = column(data.pool, "length"), column(data.chosen, "length")
    if pool is None or chosen is None or not np.nansum(pool):
        return None
    return float(np.nansum(chosen) / np.nansum(pool))


def known_cost(data: ReportData) -> dict[str, float]:
    """The entries of `cost` that hold a number."""
    return {name: float(value) for name in COSTS if (value := data.cost.get(name)) is not None and known(value)}


def saving(data: ReportData) -> float | None:
    """Seconds to train on the whole pool over seconds to select and train on the subset, if all are known."""
    cost = known_cost(data)
    if len(cost) < len(COSTS):
        return None
    together = cost["selection_seconds"] + cost["subset_training_seconds"]
    return cost["full_training_seconds"] / together if together > 0 else None
