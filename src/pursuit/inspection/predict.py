"""From a few timed batches, and the batches that the stages will make, to hours, gigabytes and memory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pursuit.batches import plan_batches
from pursuit.encoding import EncodedPool
from pursuit.gradients.directions import wide_dimension
from pursuit.gradients.extract import projections
from pursuit.inspection.costs import shape_of
from pursuit.inspection.measure import measure
from pursuit.inspection.memory import estimated_peak, total_memory
from pursuit.inspection.prospects import Measurement, Memory, Prediction, Timing
from pursuit.models.trainable import parameter_count, trainable_parameters
from pursuit.progress import say
from pursuit.recipes import Recipe
from pursuit.run.directions import known_count, known_recipes
from pursuit.run.tokens import Rows
from pursuit.settings import Settings
from pursuit.store.codecs import row_bytes
from pursuit.warmup.plan import Plan

Batches = list[list[int]]
Sizes = NDArray[np.int64]
PER_ROW = 12  # bytes beside a stored row at one checkpoint: its two norms and its loss, float32


def predict(
    model: nn.Module, settings: Settings, encoded: Rows, target: EncodedPool | None, place: Path, timed: bool,
    rates: Mapping[int, float] | None = None,
) -> Prediction:  # fmt: skip
    """What warm-up and features of this pool (and target) will take.

    Args:
        place: the run folder, or where it would be made: for the free space.
        timed: measure; without, no seconds are given and the memory is counted, not measured.
        rates: by padded tokens a batch, tokens a second, where whole batches were timed: the seconds of the features
            are then by these.
    """
    recipe, plan = settings.feature_recipe(), Plan(settings.warmup_recipe(), len(encoded))
    feature_batches = planned_batches(encoded.lengths, recipe)
    target_batches = [] if target is None else planned_batches(target.lengths, recipe)
    warmup_batches = planned_micro_batches(plan, encoded.lengths)
    measurement = None
    if timed:
        say("timing a few batches …")
        measurement = measure(model, encoded, recipe, feature_batches, warmup_batches)
    parameters = parameter_count(model)
    checkpoints = len(plan.checkpoint_steps)
    dimension = parameters if recipe.projection == "none" else recipe.dimension
    stored_bytes = checkpoints * (row_bytes(recipe.dtype, dimension) + PER_ROW)
    sizes = [batch_sizes(encoded.lengths, batches) for batches in (warmup_batches, feature_batches)]
    sizes.append(np.zeros(0, np.int64) if target is None else batch_sizes(target.lengths, target_batches))
    tokens = [int(each.sum()) for each in sizes]
    known = _directions_tokens(settings, encoded, target)
    device = next(model.parameters()).device
    return Prediction(
        parameters=parameters, checkpoints=checkpoints, dimension=dimension, store_bytes=len(encoded) * stored_bytes,
        target_store_bytes=0 if target is None else len(target) * stored_bytes,
        trajectory_bytes=3 * checkpoints * sum(p.nbytes for p in trainable_parameters(model).values()),
        free_bytes=shutil.disk_usage(existing_parent(place)).free, warmup_steps=plan.last_step,
        warmup_examples=plan.examples_seen(plan.last_step), warmup_tokens=tokens[0], feature_tokens=tokens[1],
        target_tokens=tokens[2], feature_operations=checkpoints * _operations(model, recipe, encoded, tokens[1]),
        sketched_operations=checkpoints * _operations(
            model, replace(recipe, projection="tensorsketch"), encoded, tokens[1]
        ) if recipe.projection == "sparse" and recipe.preconditioner != "sign" else None,
        memory=predict_memory(model, encoded.lengths, feature_batches, warmup_batches, measurement),
        available_memory=total_memory(device), measurement=measurement,
        directions_tokens=known, directions_bytes=_directions_bytes(settings, encoded, target, checkpoints),
        **_seconds(measurement, checkpoints, sizes, known, rates),
    )  # fmt: skip


def _operations(model: nn.Module, recipe: Recipe, encoded: Rows, tokens: int) -> float:
    """Of one pass over all rows."""
    shape = shape_of(model, projections(model, recipe)[0])
    return shape.operations(tokens, float(encoded.lengths.mean()), float(encoded.response_lengths.sum()))


def _known(settings: Settings, encoded: Rows, target: EncodedPool | None) -> list[tuple[int, float]]:
    """Rows that directions are learnt from, each counted for each way of making its gradient, and their mean length."""
    if not settings.features.directions:
        return []
    sources = [(encoded, True), *([] if target is None else [(target, False)])]
    return [
        (known_count(len(rows), of_pool=pool) * len(known_recipes(settings, of_pool=pool)), float(rows.lengths.mean()))
        for rows, pool in sources
    ]


def _directions_tokens(settings: Settings, encoded: Rows, target: EncodedPool | None) -> int:
    return round(sum(rows * mean for rows, mean in _known(settings, encoded, target)))


def _directions_bytes(settings: Settings, encoded: Rows, target: EncodedPool | None, checkpoints: int) -> int:
    rows = checkpoints * sum(rows for rows, _ in _known(settings, encoded, target))
    kept = min(rows, int(settings.features.directions * settings.features.dimension))
    return 4 * wide_dimension(settings.features.dimension) * (rows + kept)


def _seconds(
    found: Measurement | None, checkpoints: int, sizes: Sequence[Sizes], known: int, rates: Mapping[int, float] | None
) -> dict[str, float | None]:
    """`sizes`: padded tokens of every batch of warm-up, features, and the target's features."""
    seconds: dict[str, float | None] = {"directions_seconds": None if known else 0.0}
    if found is None:
        return seconds
    if found.warmup is not None:
        seconds["warmup_seconds"] = found.warmup.predicted(sizes[0])
    if (timing := found.features) is not None:
        dense = found.dense_batch_seconds
        for name, each in (("feature_seconds", sizes[1]), ("target_seconds", sizes[2])):
            taken = timing.predicted(each) + len(each) * dense if rates is None else at_rates(rates, each)
            seconds[name] = checkpoints * taken
        each_token = timing.predicted(sizes[1]) / sizes[1].sum() if rates is None else 1 / max(rates.values())
        seconds["directions_seconds"] = checkpoints * known * each_token
    return seconds


def at_rates(rates: Mapping[int, float], sizes: Sizes) -> float:
    """Seconds of batches of these sizes: between those that were timed, and below them, on a straight line; above them
    as the largest."""
    timed = np.array(sorted(rates))
    took = timed / np.array([rates[size] for size in timed.tolist()])
    slope = (took[1] - took[0]) / (timed[1] - timed[0]) if len(timed) > 1 else took[0] / timed[0]
    of_nothing = np.clip(took[0] - slope * timed[0], 0, took[0])
    within = np.interp(np.minimum(sizes, timed[-1]), [0, *timed], [of_nothing, *took])
    return float((within * np.maximum(sizes / timed[-1], 1)).sum())


def planned_batches(lengths: NDArray[np.int32], recipe: Recipe) -> Batches:
    """The batches of one checkpoint, as extraction plans them shard by shard."""
    rows, size = len(lengths), recipe.rows_a_shard(len(lengths))
    shards = [range(start, min(rows, start + size)) for start in range(0, rows, size)]
    return [batch for shard in shards for batch in plan_batches(shard, lengths, recipe.batch_tokens)]


def planned_micro_batches(plan: Plan, lengths: NDArray[np.int32]) -> Batches:
    """The micro batches of all optimizer steps of the warm-up."""
    tokens = plan.settings.micro_batch_tokens
    return [batch for step in range(plan.last_step) for batch in plan_batches(plan.batch(step), lengths, tokens)]


def batch_sizes(lengths: NDArray[np.int32], batches: Batches) -> Sizes:
    """Padded tokens of every batch."""
    return np.array([len(batch) * int(lengths[batch[0]]) for batch in batches], np.int64)


def padded_tokens(lengths: NDArray[np.int32], batches: Batches) -> int:
    """Tokens that go through the model, padding too."""
    return sum(len(batch) * int(lengths[batch[0]]) for batch in batches)


def predict_memory(
    model: nn.Module, lengths: NDArray[np.int32], feature_batches: Batches, warmup_batches: Batches,
    found: Measurement | None,
) -> Memory:  # fmt: skip
    """The peak of the hungrier of warm-up and features: measured and scaled to a full batch, or counted."""
    stages = (feature_batches, warmup_batches)
    largest = [max(padded_tokens(lengths, [batch]) for batch in batches) for batches in stages]
    scaled = [
        _scaled(timing, full)
        for timing, full in zip((found.features, found.warmup) if found else (), largest, strict=False)
    ]
    known = [memory for memory in scaled if memory is not None]
    if known and len(known) == len(scaled):
        return max(known, key=lambda memory: memory.bytes)
    tokens = max(largest)
    how = f"counted, not measured: what is loaded, Adam's moments, activations and logits of {tokens:,} tokens at once"
    return Memory(estimated_peak(model, tokens), how)


def _scaled(timing: Timing | None, full: int) -> Memory | None:
    """What a timed batch took beyond the memory in use before, in proportion to a full batch's tokens."""
    if timing is None or timing.before is None or timing.peak is None:
        return None
    added = max(0, timing.peak - timing.before)
    how = f"measured with {timing.largest:,} tokens at once"
    if full > timing.largest:
        added = added * full // timing.largest
        how += f", scaled to {full:,}"
    return Memory(timing.before + added, how)


def existing_parent(place: Path) -> Path:
    """The folder itself or the nearest one above it that is there."""
    place = place.absolute()
    return next(folder for folder in (place, *place.parents) if folder.is_dir())
