"""Timing real work on a few batches of the pool, so that the hours of the whole can be told beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import nn

from pursuit.batches import EncodedRows, collate
from pursuit.devices import Repeatable, free_cached_memory, out_of_memory
from pursuit.errors import PursuitError
from pursuit.gradients.capture import ExampleGradients
from pursuit.gradients.extract import as_extracted, batch_features, check_gradients, projections
from pursuit.gradients.losses import token_losses
from pursuit.gradients.precondition import AdamState, Preconditioning
from pursuit.gradients.project import DENSE_ROWS, Projection, make_projection
from pursuit.gradients.shards import old_objects_left_alone
from pursuit.inspection.memory import peak_memory, reset_peak, used_memory
from pursuit.inspection.prospects import Measurement, Timing
from pursuit.models.trainable import parameter_count, trainable_parameters
from pursuit.recipes import Recipe

SECONDS = 20.0  # that the timed batches may take together, more or less
SHARE_OF_FEATURES = 0.6  # of these seconds
STRATA = 5  # batches timed: one from each fifth of the padded tokens, ordered by length
REPEATS = 5  # at most, of a batch that takes much less than its share of the time
Work = Callable[[list[int]], None]
Batches = Sequence[list[int]]


def measure(
    model: nn.Module, encoded: EncodedRows, recipe: Recipe, feature_batches: Batches, warmup_batches: Batches,
    seconds: float = SECONDS,
) -> Measurement:  # fmt: skip
    """Time feature batches and warm-up micro batches at the model's present weights, which stay as they are.

    Adam's moments are zeros of the right shapes: their values do not change the work [ours].

    Args:
        feature_batches, warmup_batches: all batches that the run will make; a few of them are timed, cut to fewer rows
            where the whole batch would take too long.
    """
    parameters = trainable_parameters(model)
    device = next(iter(parameters.values())).device
    moments = [{name: torch.full_like(p, 0.0, dtype=torch.float32) for name, p in parameters.items()} for _ in range(2)]
    state = AdamState(moments[0], moments[1], step=0)
    dense_apart = replace(recipe, projection="sparse") if recipe.projection == "rademacher" else recipe
    sketch, projection = projections(model, dense_apart)
    direction = Preconditioning(recipe.preconditioner, state, recipe.momentum, device, sketch)
    features = warmup = None
    dense, problem = 0.0, None
    try:
        share = seconds * SHARE_OF_FEATURES
        with as_extracted(model):
            check_gradients(model, encoded, direction.sketch)
            features, dense = _time_features(model, encoded, recipe, direction, projection, feature_batches, share)
        warmup = _time_warmup(model, encoded, warmup_batches, seconds - share)
    except PursuitError as error:
        problem = str(error)
    except (RuntimeError, IndexError, MemoryError) as error:  # rows beyond the model's context, for example
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        if out_of_memory(error):
            problem = "memory does not suffice for one row of the pool; lower --max-length or the LoRA rank."
    return Measurement(_in_words(device), features, warmup, dense, problem)


def _time_features(
    model: nn.Module, encoded: EncodedRows, recipe: Recipe, direction: Preconditioning, projection: Projection,
    batches: Batches, seconds: float,
) -> tuple[Timing, float]:  # fmt: skip
    """A dense projection costs the same for one row as for a full batch: it is timed apart, the rest with a sparse."""
    size, dense = parameter_count(model), recipe.projection == "rademacher"
    device = next(model.parameters()).device

    repeatable, gradients = Repeatable(device), ExampleGradients(model, sketch=direction.sketch)

    def work(rows: list[int]) -> None:
        repeatable(lambda: batch_features(gradients, encoded, rows, projection, direction))

    with old_objects_left_alone():
        timing = time_batches(batches, encoded.lengths, work, seconds, device)
    rows = max(1, sum(map(len, batches)) // len(batches))
    return timing, _dense_seconds(size, recipe, rows, device) if dense else 0.0


def _dense_seconds(size: int, recipe: Recipe, rows: int, device: torch.device) -> float:
    """Seconds of the dense projection of one batch: of one block of its matrix, times its blocks."""
    projection = make_projection("rademacher", size, recipe.dimension, recipe.seed)
    block = torch.zeros(rows, min(size, DENSE_ROWS), device=device)
    accumulator = projection.start(rows, device)
    begun = time.perf_counter()
    projection.add(accumulator, 0, block)
    projection.finish(accumulator).cpu()
    return (time.perf_counter() - begun) * -(-size // DENSE_ROWS)


def _time_warmup(model: nn.Module, encoded: EncodedRows, batches: Batches, seconds: float) -> Timing:
    """Forward and backward with dropout on, as the warm-up's micro batches; gradients are thrown away afterwards."""
    parameters = list(trainable_parameters(model).values())
    device, was_training = parameters[0].device, model.training

    def work(rows: list[int]) -> None:
        losses, _ = token_losses(model, collate(encoded, rows, device))
        if losses.requires_grad:
            losses.mean().backward()

    try:
        model.train()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            return time_batches(batches, encoded.lengths, work, seconds, device)
    finally:
        model.train(was_training)
        for parameter in parameters:
            parameter.grad = None


def time_batches(
    batches: Batches, lengths: NDArray[np.int32], work: Work, seconds: float, device: torch.device
) -> Timing:
    """Time `work` on batches from all lengths; each counts the same, as each stands for as many tokens.

    The first call is not timed. A batch is cut to as many rows as its share of the time allows, but never to less than
    one; when even one row would go beyond the time, the longest batches are left out.
    """
    sample = spread(batches, lengths, STRATA)
    shortest = min(sample, key=lambda batch: lengths[batch[0]])[-1:]
    _timed(work, shortest, device)
    reset_peak(device)
    before = used_memory(device)
    rate = _timed(work, shortest, device) / int(lengths[shortest[0]])
    begun = time.perf_counter()
    sizes: list[int] = []
    took: list[float] = []
    tokens = largest = 0
    for place, batch in enumerate(sample):
        longest, left = int(lengths[batch[0]]), seconds - (time.perf_counter() - begun)
        share = left / (len(sample) - place)
        if sizes and longest * rate > max(left, 0):
            continue
        rows = batch[: max(1, int(share / (rate * longest)))]
        repeats = min(REPEATS, max(1, int(share / (rate * longest * len(rows)) / 2)))
        whole, rows = _until_it_fits(work, rows, repeats, device)
        size = longest * len(rows)
        rate = whole / repeats / size
        sizes.append(size)
        took.append(whole / repeats)
        tokens, largest = tokens + repeats * size, max(largest, size)
    spent = time.perf_counter() - begun
    each_batch, each_token = fitted(np.array(sizes, float), np.array(took), fixed=device.type != "cpu")
    return Timing(each_batch, each_token, spent, len(sizes), tokens, largest, before, peak_memory(device))


def fitted(sizes: NDArray[np.float64], took: NDArray[np.float64], *, fixed: bool) -> tuple[float, float]:
    """Seconds of a batch whatever is in it, and of a token: what a GPU waits for its calls is the same for few tokens.

    By least squares of the relative errors, neither below zero. Without `fixed` all is by tokens: on a CPU it is, and
    what is left is noise.
    """
    if not fixed:
        return 0.0, float((took / sizes).mean())
    (each_batch, each_token), _ = nnls(np.stack([1 / took, sizes / took], axis=1), np.ones(len(took)))
    return float(each_batch), float(each_token)


def spread(batches: Batches, lengths: NDArray[np.int32], count: int) -> list[list[int]]:
    """One batch from the middle of each of `count` strata of equal padded tokens; the middle stratum first."""
    ordered = sorted(batches, key=lambda batch: int(lengths[batch[0]]))
    upto = np.cumsum([len(batch) * int(lengths[batch[0]]) for batch in ordered])
    places = [(2 * stratum + 1) / (2 * count) for stratum in range(count)]
    places.sort(key=lambda place: (abs(place - 0.5), place))
    chosen = dict.fromkeys(int(np.searchsorted(upto, place * upto[-1])) for place in places)
    return [ordered[number] for number in chosen]


def _until_it_fits(work: Work, rows: list[int], repeats: int, device: torch.device) -> tuple[float, list[int]]:
    """Seconds of `repeats` calls, and the rows that they were given: half as many each time that memory runs out."""
    while True:
        try:
            if device.type != "cpu":
                work(rows)  # the first batch of a shape waits for its kernels
            return sum(_timed(work, rows, device) for _ in range(repeats)), rows
        except (RuntimeError, MemoryError) as error:
            if len(rows) == 1 or not out_of_memory(error):
                raise
            rows = rows[: len(rows) // 2]
        free_cached_memory()


def _timed(work: Work, rows: list[int], device: torch.device) -> float:
    begun = time.perf_counter()
    work(rows)
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter() - begun


def _in_words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} {'thread' if threads == 1 else 'threads'}"
