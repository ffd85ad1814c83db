"""What a careful reader of the numbers would look into; the thresholds are ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pursuit.report.data import ReportData
from pursuit.report.summary import Distribution, SourceShare
from pursuit.report.text import count, number, percent, times
from pursuit.report.weights import weight_summary

ENOUGH = 10  # rows from which a share is worth a remark
MANY_REFUSED = 0.01


def observations(
    data: ReportData, shares: Sequence[SourceShare], found: Sequence[Distribution], most: int | None = None
) -> list[str]:
    """Sentences about what stands out; at most `most` of them, and how many more there are."""
    notes = [
        *_budget(data), *_refused(data), *_agreement(data), *_doubled(data), *_weights(data), *_medians(data, found),
        *_shares(data, shares), *_scripts(data),
    ]  # fmt: skip
    return notes if most is None or len(notes) <= most else [*notes[:most], f"{len(notes) - most} more of this kind."]


def _budget(data: ReportData) -> Iterator[str]:
    if data.chosen.num_rows != data.budget:
        yield f"{count(data.budget)} examples were asked for and {count(data.chosen.num_rows)} were chosen."


def _refused(data: ReportData) -> Iterator[str]:
    refused = max(data.refused_total, len(data.refused))
    if refused > MANY_REFUSED * (data.pool_size + refused):
        share = percent(refused / (data.pool_size + refused))
        yield f"{count(refused)} rows ({share} of all) could not be used and were left out; Refused has the reasons."


def _medians(data: ReportData, found: Sequence[Distribution]) -> Iterator[str]:
    for item in found:
        ratio = item.chosen.median / item.pool.median if item.pool.median > 0 else 1.0
        if data.chosen.num_rows >= ENOUGH and not 2 / 3 <= ratio <= 3 / 2:
            yield (
                f"{item.title}: the chosen have a median of {number(item.chosen.median)}, "
                f"the pool {number(item.pool.median)} ({times(ratio)})."
            )


def _doubled(data: ReportData) -> Iterator[str]:
    doubled = {max(pair.a_rank, pair.b_rank) for pair in data.near_duplicates}
    if len(doubled) > max(1, data.chosen.num_rows // 100):
        yield f"{count(len(doubled))} chosen examples nearly repeat another chosen one."


def _weights(data: ReportData) -> Iterator[str]:
    weights = weight_summary(data)
    if weights is None or data.chosen.num_rows < ENOUGH:
        return
    if weights.zero:
        yield f"{count(weights.zero)} of the chosen have weight 0: they fill the budget and add nothing to the sum."
    if weights.effective < data.chosen.num_rows / 3:
        yield (
            f"The weights lie on few rows: they count like {count(round(weights.effective))} equally weighted ones. "
            "A trainer that does not use them sees another mix."
        )


def _shares(data: ReportData, shares: Sequence[SourceShare]) -> Iterator[str]:
    chosen = data.chosen.num_rows
    for share in shares if len(shares) > 1 else ():
        if share.pool_share * chosen >= ENOUGH and share.factor < 0.5:
            yield (
                f"Source {share.source}: {percent(share.pool_share)} of the pool, "
                f"{percent(share.chosen_share) if share.chosen else 'none'} of the chosen."
            )
        elif share.chosen >= ENOUGH and share.factor > 2:
            yield f"Source {share.source} is over-represented: {times(share.factor)} its share of the pool."


def _scripts(data: ReportData) -> Iterator[str]:
    pool_total, chosen_total = sum(row[1] for row in data.scripts), sum(row[2] for row in data.scripts)
    for name, pool, chosen in data.scripts:
        in_pool, picked = pool / max(1, pool_total), chosen / max(1, chosen_total)
        if max(pool, chosen) >= ENOUGH and not in_pool / 2 <= picked <= 2 * in_pool:
            yield f"Script {name}: {percent(in_pool)} of the pool, {percent(picked)} of the chosen (in a sample)."


def _agreement(data: ReportData) -> Iterator[str]:
    if data.agreement is None or not data.agreement.entries:
        return
    least = min(data.agreement.entries, key=lambda entry: entry.kept)
    if least.kept < max(0.3, 2 * data.agreement.by_chance):
        yield f"Run again with {least.name}, the method takes only {percent(least.kept)} of these rows."
