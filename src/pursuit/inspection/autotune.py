"""A proposal for d, the stored type and the batch size, from a few hundred rows of the pool [ours].

The noise of a projection is what two seeds of it disagree on. Each d is tried with two seeds on the same gradients, and
the smallest at which the inner products between rows correlate well enough is proposed. Codes are tried on these rows:
the smallest is proposed whose own error adds little to the projection's. The batch size is the fastest, on the clock.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pursuit.batches import EncodedRows, collate, plan_batches
from pursuit.devices import Repeatable, out_of_memory
from pursuit.errors import ModelError
from pursuit.gradients.capture import ExampleGradients, batch_gradients
from pursuit.gradients.extract import batch_features, projections
from pursuit.gradients.precondition import Preconditioning
from pursuit.gradients.shards import old_objects_left_alone
from pursuit.gradients.sketch import reduced
from pursuit.inspection.prospects import Proposal
from pursuit.models.trainable import trainable_parameters
from pursuit.recipes import Recipe, StoredType
from pursuit.store.codecs import decode, encode

ROWS, SECONDS = 200, 60.0
DIMENSIONS = (512, 1024, 2048, 4096, 8192, 16384)
ENOUGH = 0.95  # correlation of inner products between two seeds
ADDED = 0.1  # a code may add this share of the projection's mean square error
BATCH_TOKENS = (512, 1024, 2048, 4096, 8192)
LARGER = (16384, 32768, 65536)  # on a GPU, whose memory says when it is full; a computer's may take the process away
CODES: tuple[StoredType, ...] = ("bits", "int8", "float16")


def autotune(model: nn.Module, encoded: EncodedRows, recipe: Recipe, seconds: float = SECONDS) -> Proposal:
    """Measure on random rows at the model's present weights, with plain gradients: no moments are known before a
    warm-up. At a new LoRA's start the gradients of A are zero, so that half of the coordinates count [ours].
    """
    recipe = replace(recipe, preconditioner="sgd", projection="sparse" if recipe.projection == "rademacher"
                     else recipe.projection)  # fmt: skip
    order = np.random.default_rng(recipe.seed).permutation(len(encoded))
    rates = _rates(model, encoded, recipe, order, seconds / 3)
    best = max(rates.values())
    batch_tokens = min(size for size, rate in rates.items() if rate >= 0.97 * best)
    lengths = np.asarray(encoded.lengths)
    affordable = int(np.searchsorted(np.cumsum(lengths[order]), best * seconds / 2)) + 2
    rows = np.sort(order[: min(ROWS, affordable)])
    pairs = _sketched(model, encoded, recipe, rows.tolist(), batch_tokens)
    agreement = {d: float(np.corrcoef(_products(a), _products(b))[0, 1]) for d, (a, b) in pairs.items()}
    dimension = next((d for d in agreement if agreement[d] >= ENOUGH), max(agreement))
    one, other = pairs[dimension]
    noise = float(np.square(_products(one) - _products(other)).mean()) / 2
    code_error = {
        code: float(np.square(_products(_coded(one, code)) - _products(one)).mean()) / max(noise, 1e-30)
        for code in CODES
    }
    dtype: StoredType = next((code for code in CODES if code_error[code] <= ADDED), "float16")
    return Proposal(len(rows), agreement, code_error, rates, dimension, dtype, batch_tokens)


def _rates(
    model: nn.Module, encoded: EncodedRows, recipe: Recipe, order: NDArray[np.int64], seconds: float
) -> dict[int, float]:
    """Padded tokens a second by batch size, each on the batch that a shard would begin its middle with; larger ones are
    left out once memory or time is out."""
    sketch, projection = projections(model, recipe)
    direction = Preconditioning("sgd", None, device=next(model.parameters()).device, sketch=sketch)
    gradients = ExampleGradients(model, sketch=sketch)
    shard = order[: recipe.rows_a_shard(len(encoded))].tolist()
    rates: dict[int, float] = {}
    begun = time.perf_counter()
    device = next(model.parameters()).device
    on_gpu, repeatable = device.type == "cuda", Repeatable(device)  # the kernels of extraction
    for size in BATCH_TOKENS + (LARGER if on_gpu else ()):
        batches = plan_batches(shard, encoded.lengths, size)
        batch = batches[len(batches) // 2]
        tokens = len(batch) * int(encoded.lengths[batch[0]])
        took = []
        try:
            for _ in range(3):  # the first is not counted
                start = time.perf_counter()
                with old_objects_left_alone():
                    repeatable(partial(batch_features, gradients, encoded, batch, projection, direction))
                took.append(time.perf_counter() - start)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if not rates:
                raise ModelError(f"memory does not suffice for {tokens} tokens; lower --max-length.") from error
            break
        rates[size] = tokens / min(took[1:])
        if time.perf_counter() - begun > seconds:
            break
    return rates


def _sketched(
    model: nn.Module, encoded: EncodedRows, recipe: Recipe, rows: list[int], batch_tokens: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """By d, the unit rows of two seeds, all from the same gradients."""
    places = {row: place for place, row in enumerate(rows)}
    sketches = {
        (d, seed): _Sketch(model, replace(recipe, dimension=d, seed=recipe.seed + seed))
        for d in DIMENSIONS for seed in (0, 1)
    }  # fmt: skip
    found = {key: torch.empty(len(rows), sketch.projection.dimension) for key, sketch in sketches.items()}

    def consume(name: str, block: Tensor) -> None:
        for sketch in sketches.values():
            sketch.add(name, block)

    parameters = trainable_parameters(model)
    device = next(iter(parameters.values())).device
    for batch in plan_batches(rows, encoded.lengths, batch_tokens):
        for sketch in sketches.values():
            sketch.sums = sketch.projection.start(len(batch), device)
        batch_gradients(model, collate(encoded, batch, device), parameters, consume)
        for key, sketch in sketches.items():
            unit = nn.functional.normalize(sketch.projection.finish(sketch.sums), dim=1)
            found[key][[places[row] for row in batch]] = unit.cpu()
    return {d: (found[d, 0], found[d, 1]) for d in DIMENSIONS}


class _Sketch:
    """One projection of gradients that were formed for all of them; a parameter without a gradient adds nothing."""

    sums: Tensor

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.sketch, self.projection = projections(model, recipe)
        parameters = trainable_parameters(model)
        sizes = {n: p.numel() for n, p in parameters.items()} if self.sketch is None else self.sketch.sizes
        self.begins = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))

    def add(self, name: str, block: Tensor) -> None:
        narrow = block if self.sketch is None else reduced(self.sketch, name, block)
        self.projection.add(self.sums, self.begins[name], narrow.flatten(1))


def _products(rows: Tensor) -> NDArray[np.float64]:
    """Inner products of all pairs of rows."""
    matrix = rows.double().numpy()
    return (matrix @ matrix.T)[np.triu_indices(len(matrix), 1)]


def _coded(rows: Tensor, code: StoredType) -> Tensor:
    out = np.empty(tuple(rows.shape), np.float32)
    kept = encode(rows, code)
    decode(kept["features"], kept.get("scales"), out)
    return torch.from_numpy(out)
