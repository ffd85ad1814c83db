"""Gathering what the report shows: from a selection, its features and the run's records to `ReportData`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from scipy.sparse.linalg import svds

from pursuit.features import Features
from pursuit.report import ClusterView, ExampleView, GradientMap, NearDuplicate, ReportData
from pursuit.run_folder import versions
from pursuit.selectors import Selection

BROWSED = 500  # chosen examples with their text on the page
COMPARED = 20_000  # chosen rows among which near-duplicates are looked for
SHOWN_PAIRS = 20
NEAR = 0.95  # cosine of the features from which two rows count as near-duplicates
MAPPED = 3_000  # points on the map

Segments = Sequence[tuple[str, bool]]
Render = Callable[[int], Segments]  # the text of a pool row


def report_data(
    selection: Selection, features: Features, chosen: pa.Table, *, settings: Mapping[str, Any],
    render: Render | None = None, **known: Any,
) -> ReportData:  # fmt: skip
    """Everything the page shows.

    Args:
        chosen: from `pursuit.export.chosen_table`.
        render: text of a pool row as segments (text, is response); None where there is no text.
        known: further fields of ReportData (timings, cost, refused, …).
    """
    pool = pool_table(selection, features)
    texts = _texts(render)
    return ReportData(
        title=f"{selection.method}: {len(selection):,} of {features.num_rows:,}", method=selection.method,
        residuals=selection.diagnostics.get("residuals", {}),
        budget=len(selection), pool_size=features.num_rows, pool=pool, chosen=chosen, settings=settings,
        versions=versions(), examples=_examples(chosen, render), clusters=_clusters(selection),
        near_duplicates=near_duplicates(selection, features, texts), map=gradient_map(selection, features, texts),
        warnings=[*selection.diagnostics.get("warnings", ()), *known.pop("warnings", ())], **known,
    )  # fmt: skip


def pool_table(selection: Selection, features: Features) -> pa.Table:
    """One row a pool row: source, lengths, loss, gradient norm, cluster, whether it was chosen."""
    n = features.num_rows
    chosen = np.zeros(n, dtype=bool)
    chosen[selection.indices] = True
    cluster = np.full(n, -1)
    if selection.clusters is not None:
        cluster[selection.indices] = selection.clusters
    columns: dict[str, Any] = {
        "index": np.arange(n), "source": features.rows["source"], "loss": features.losses[-1],
        "gradient_norm": features.gradient_norms[-1], "cluster": cluster, "chosen": chosen,
    }  # fmt: skip
    known = set(features.rows.column_names)
    columns |= {name: features.rows[name] for name in ("length", "response_length") if name in known}
    return pa.table(columns)


def near_duplicates(selection: Selection, features: Features, texts: Callable[[int], str]) -> list[NearDuplicate]:
    """Pairs of chosen rows whose features have a cosine of at least `NEAR`, most alike first."""
    indices = selection.indices[:COMPARED]
    if features.dimension == 0 or len(indices) < 2:
        return []
    rows = _unit(features.average()[indices])
    finder = faiss.IndexFlatIP(rows.shape[1])
    finder.add(rows)
    similarity, neighbour = finder.search(rows, 2)
    pairs = {}
    for a in range(len(rows)):
        for cosine, b in zip(similarity[a], neighbour[a], strict=True):
            if b != a and b >= 0 and cosine >= NEAR:
                pairs[min(a, int(b)), max(a, int(b))] = float(min(cosine, 1.0))
    best = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_PAIRS]
    return [
        NearDuplicate(a + 1, b + 1, cosine, texts(int(indices[a])), texts(int(indices[b]))) for (a, b), cosine in best
    ]


def gradient_map(selection: Selection, features: Features, texts: Callable[[int], str]) -> GradientMap | None:
    """A random sample of the pool and of the chosen rows on the first two principal axes of their features."""
    n = features.num_rows
    if features.dimension < 3 or n < 4:
        return None
    generator = np.random.default_rng(0)
    share = min(len(selection), MAPPED // 3)
    rows = np.union1d(generator.permutation(selection.indices)[:share], generator.permutation(n)[: MAPPED - share])
    points = features.average()[rows].astype(np.float64)
    points -= points.mean(axis=0)
    if not points.any():
        return None
    left, values, _ = svds(points, k=2, v0=np.ones(min(points.shape)))
    xy = (left * values)[:, ::-1] / values.max()
    cluster = np.full(n, -1)
    if selection.clusters is not None:
        cluster[selection.indices] = selection.clusters
    return GradientMap(xy, np.isin(rows, selection.indices), cluster[rows], [texts(int(row)) for row in rows])


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.ascontiguousarray(rows / np.where(norms > 0, norms, 1), dtype=np.float32)


def _texts(render: Render | None) -> Callable[[int], str]:
    """Short text of a pool row: its number where there is no text."""

    def short(index: int) -> str:
        if render is None:
            return f"row {index}"
        text = "".join(part for part, _ in render(index))
        return text if len(text) <= 240 else text[:120] + " … " + text[-120:]

    return short


def _examples(chosen: pa.Table, render: Render | None) -> list[ExampleView]:
    if render is None:
        return []
    return [
        ExampleView(
            rank=row["rank"], index=row["index"], source=row["source"], cluster=row["cluster"], weight=row["weight"],
            score=row["score"], loss=row["loss"], segments=render(row["index"]), path=row.get("path", ""),
            line=row.get("line"),
        )
        for row in chosen.slice(0, BROWSED).to_pylist()
    ]  # fmt: skip


def _clusters(selection: Selection) -> list[ClusterView]:
    return [
        ClusterView(entry["cluster"], entry["size"], entry["chosen"], entry.get("residuals", ()))
        for entry in selection.diagnostics.get("clusters", ())
    ]
