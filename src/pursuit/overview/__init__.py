"""Gathering what the report shows: from a selection, its features and the run's records to `ReportData`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pursuit.errors import SettingsError
from pursuit.overview.neighbours import COMPARED, near_duplicates, nearest_targets, unchosen_neighbours
from pursuit.overview.reasons import reasons, target_names
from pursuit.overview.scripts import script_counts
from pursuit.overview.space import (
    Directions,
    direction_views,
    directions_of,
    end_name,
    gradient_map,
    map_of,
    sample_rows,
)
from pursuit.overview.texts import Render, Texts, quoted
from pursuit.report import ClusterView, ExampleView, MethodPairs, NearDuplicate, NeighbourView, ReportData, TargetView
from pursuit.selectors import Selection
from pursuit.selectors.registry import METHODS, method
from pursuit.store.features import Features
from pursuit.versions import versions

__all__ = ["Render", "gradient_map", "near_duplicates", "pool_table", "report_data"]

BROWSED = 500  # chosen examples with their text on the page


def report_data(
    selection: Selection, features: Features, chosen: pa.Table, *, settings: Mapping[str, Any],
    render: Render | None = None, target: Features | None = None, render_target: Render | None = None,
    keep: np.ndarray | None = None, **known: Any,
) -> ReportData:  # fmt: skip
    """Everything the page shows.

    Args:
        chosen: from `pursuit.export.subset.chosen_table`.
        render: text of a pool row as segments (text, is response); None where there is no text.
        target: features of the target, to say which of its rows a chosen row is most like.
        render_target: text of a row of the target.
        keep: (N,) bool, the rows that were chosen from, where some were left out; the page is about these.
        known: further fields of ReportData (timings, cost, refused, agreement, price_per_hour, …).
    """
    texts = Texts(render)
    names = target_names(selection)
    if names is not None and "target" not in chosen.column_names:
        chosen = chosen.append_column("target", pa.array(names, pa.string()))
    shown = selection.indices[:BROWSED] if render is not None else selection.indices[:0]
    neighbours, note = unchosen_neighbours(selection, features, shown, keep)
    rows = np.arange(features.num_rows) if keep is None else np.flatnonzero(keep)
    sample = sample_rows(selection, rows)
    space = directions_of(features, sample.rows)
    more = [] if space is None or not len(shown) else [_nearest_ends(features, space, shown)]
    if target is not None and len(shown) and target.dimension == features.dimension:
        more.append(_most_like(features, target, shown, Texts(render_target)))
    why = reasons(selection, range(len(shown)), more)
    pool = pool_table(selection, features)
    return ReportData(
        title=f"{selection.method}: {len(selection):,} of {len(rows):,}", method=selection.method,
        **_course(selection), budget=known.pop("budget", len(selection)), pool_size=len(rows),
        pool=pool if keep is None else pool.take(pa.array(rows)), chosen=chosen, settings=settings,
        versions=versions(), features=_kind(selection, features),
        examples=_examples(chosen.slice(0, len(shown)), texts, features, why, neighbours), neighbours_note=note,
        clusters=_clusters(selection), targets=_targets(selection), method_pairs=_method_pairs(selection, texts),
        near_duplicates=near_duplicates(selection, features, texts.whole),
        near_duplicates_note=f"Among the first {COMPARED:,}." if len(selection) > COMPARED else "",
        map=None if space is None else map_of(selection, sample.rows, space, texts),
        directions=[] if space is None or render is None else direction_views(sample, space, texts),
        scripts=[] if render is None else script_counts(texts.segments, sample.pool.tolist(), sample.chosen.tolist()),
        scripts_note=f"A guess from the letters of the responses, in a random {len(sample.pool):,} of the pool and "
        f"{len(sample.chosen):,} of the chosen. “code-like” are Latin texts that look like a programming language.",
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


def _kind(selection: Selection, features: Features) -> str:
    """What the features are, in words."""
    if features.dimension == 0:
        return ""
    try:
        embedded = selection.method in METHODS and method(selection.method, **selection.parameters).needs_embeddings
    except SettingsError:  # of a selection that an older version made
        embedded = False
    return "hidden states" if embedded else "gradients"


def _nearest_ends(features: Features, space: Directions, shown: np.ndarray) -> dict[int, str]:
    ends, cosines = space.nearest(np.asarray(features.average()[shown], np.float64))
    return {
        place: f"Nearest to the end {end_name(int(end))} of the main directions (cosine {cosine:.2f})."
        for place, (end, cosine) in enumerate(zip(ends, cosines, strict=True))
    }


def _most_like(features: Features, target: Features, shown: np.ndarray, texts: Texts) -> dict[int, str]:
    nearest, cosines = nearest_targets(features, target, shown)
    return {
        place: f"Of the target's rows it is most like {quoted(texts.short(int(row)))} (cosine {cosine:.2f})."
        for place, (row, cosine) in enumerate(zip(nearest, cosines, strict=True))
    }


def _examples(
    chosen: pa.Table, texts: Texts, features: Features, why: Sequence[Sequence[str]],
    neighbours: Mapping[int, tuple[int, float]],
) -> list[ExampleView]:  # fmt: skip
    return [
        ExampleView(
            rank=row["rank"], index=row["index"], source=row["source"], cluster=row["cluster"], weight=row["weight"],
            score=row["score"], loss=row["loss"], segments=texts.segments(row["index"]), path=row.get("path", ""),
            line=row.get("line"), reasons=sentences,
            neighbour=_neighbour(neighbours.get(row["index"]), texts, features),
        )
        for row, sentences in zip(chosen.to_pylist(), why, strict=True)
    ]  # fmt: skip


def _neighbour(found: tuple[int, float] | None, texts: Texts, features: Features) -> NeighbourView | None:
    if found is None:
        return None
    index, cosine = found
    about = features.rows.slice(index, 1).to_pylist()[0]
    return NeighbourView(
        index, cosine, about.get("source") or "", texts.segments(index), about.get("path") or "", about.get("line")
    )


def _clusters(selection: Selection) -> list[ClusterView]:
    return [
        ClusterView(entry["cluster"], entry["size"], entry["chosen"], entry.get("residuals", ()))
        for entry in selection.diagnostics.get("clusters", ())
    ]


def _targets(selection: Selection) -> list[TargetView]:
    """The targets of methods that tell several apart; one whose residual is followed ends with it."""
    found = [
        ("target", entry) for entry in selection.diagnostics.get("targets", ())
    ] or [("subtask", entry) for entry in selection.diagnostics.get("subtasks", ())]  # fmt: skip
    return [
        TargetView(
            str(entry.get(name, "")), entry.get("examples"), entry["chosen"] if name == "target" else None,
            entry["chosen"], entry["residuals"][-1] if entry.get("residuals") else None,
        )
        for name, entry in found
    ] if len(found) > 1 else []  # fmt: skip


def _course(selection: Selection) -> dict[str, Any]:
    """The curves of the whole choice: residuals, rows that entered in each iteration, seconds of the parts."""
    facts = selection.diagnostics
    several = [entry for entry in facts.get("targets", ()) if "support_changes" in entry]
    changes = {str(entry["target"]): entry["support_changes"] for entry in several}
    if "support_changes" in facts:
        changes = {selection.method: facts["support_changes"]}
    seconds: dict[str, float] = {}
    for entry in [facts, *several]:
        for part, spent in entry.get("seconds", {}).items():
            seconds[part] = seconds.get(part, 0.0) + spent
    return {
        "residuals": facts.get("residuals", {}), "step": "iteration" if changes else "step",
        "support_changes": changes, "parts": list(seconds.items()),
    }  # fmt: skip


def _method_pairs(selection: Selection, texts: Texts) -> list[MethodPairs]:
    """Near-duplicates that this method takes, and those that the most similar rows would have brought."""
    totals = selection.diagnostics.get("near_duplicate_pairs", {})
    examples = selection.diagnostics.get("near_duplicate_examples", {})
    rank = {int(index): place + 1 for place, index in enumerate(selection.indices)}
    return [
        MethodPairs(
            name, int(total),
            [
                NearDuplicate(
                    rank.get(int(a), 0), rank.get(int(b), 0), float(cosine), texts.whole(int(a)), texts.whole(int(b)),
                    int(a), int(b),
                )
                for a, b, cosine in _various(examples.get(name, ()))
            ],
        )
        for name, total in totals.items()
    ]  # fmt: skip


def _various(pairs: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """The same pairs, first those of rows that no pair before them had."""
    seen: set[float] = set()
    fresh: list[Sequence[float]] = []
    rest: list[Sequence[float]] = []
    for pair in pairs:
        (rest if {pair[0], pair[1]} & seen else fresh).append(pair)
        seen |= {pair[0], pair[1]}
    return [*fresh, *rest]
