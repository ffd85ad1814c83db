"""The pass over the pool: per-example gradients at every checkpoint, preconditioned, projected, stored by shards.

The unit of work is one shard at one checkpoint. Batches are planned within a shard, so a run that was killed, or split
over several machines, makes the same batches and the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pursuit.batches import EncodedRows, collate
from pursuit.devices import Repeatable
from pursuit.errors import ModelError
from pursuit.gradients.capture import ExampleGradients, batch_gradients, refuse_unseen
from pursuit.gradients.directions import DirectedProjection, read_directions, wide_dimension
from pursuit.gradients.factors import make_factors
from pursuit.gradients.precondition import AdamState, Preconditioning
from pursuit.gradients.project import Projection, make_projection
from pursuit.gradients.shards import Compute, begin_store, fill_store, row_error
from pursuit.gradients.sketch import MatrixSketch, reduced
from pursuit.gradients.tensorsketch import make_tensor_sketch
from pursuit.gradients.together import NUMBERS, Together
from pursuit.models.trainable import trainable_parameters
from pursuit.recipes import Recipe
from pursuit.store.features import FeatureStore

VERSION = 2  # raised when the same settings give other features than they did; 2: rotary positions of bfloat16 models


class Checkpoints(Protocol):
    """The trajectory as extraction needs it."""

    def __len__(self) -> int: ...

    def weights(self) -> Sequence[float] | NDArray[np.float64]:
        """T learning-rate weights summing to 1."""
        ...

    def load_into(self, model: nn.Module, number: int, /) -> None:
        """Copy a checkpoint's weights into the model."""
        ...

    def moments(self, number: int, /) -> AdamState:
        """Adam's state at a checkpoint."""
        ...


def extract(
    model: nn.Module, checkpoints: Checkpoints, encoded: EncodedRows, folder: Path, recipe: Recipe, *,
    provenance: Mapping[str, Any], shards: Iterable[int] | None = None, describe: str = "gradients",
) -> FeatureStore:  # fmt: skip
    """Fill a feature store with every row at every checkpoint; what already stands whole is kept.

    Args:
        provenance: everything else that shaped the features (model, data, trajectory), JSON-able.
        shards: only these shard numbers; all without.

    Raises:
        StoreError: the folder holds features made with other settings (each difference is named).
        DataError: a row whose loss or gradient is NaN or infinite, or that does not fit in memory alone.
        ModelError: the hooks do not reproduce this model's own gradients.
    """
    dimension, at = prepare(model, checkpoints, encoded, recipe)
    weights = [float(weight) for weight in checkpoints.weights()]
    store = open_store(folder, encoded, weights, recipe, dimension, provenance)
    fill_store(store, encoded, at, recipe.batch_tokens, shards=shards, describe=describe)
    return store


def prepare(
    model: nn.Module, checkpoints: Checkpoints, encoded: EncodedRows, recipe: Recipe
) -> tuple[int, Callable[[int], Compute]]:
    """Make a model ready for extraction.

    Returns:
        d; and a function that loads a checkpoint into the model, checks its gradients, and gives what makes the
        features of a batch there.
    """
    to_one_dtype(model)
    sketch, projection = projections(model, recipe)
    repeatable = Repeatable(next(model.parameters()).device)

    def at(checkpoint: int) -> Compute:
        checkpoints.load_into(model, checkpoint)
        direction = _direction(model, checkpoints, checkpoint, recipe, sketch)
        repeatable(lambda: check_gradients(model, encoded, direction.sketch))
        gradients = ExampleGradients(model, sketch=direction.sketch)
        return lambda rows: repeatable(lambda: batch_features(gradients, encoded, rows, projection, direction))

    return projection.dimension, at


def projections(model: nn.Module, recipe: Recipe) -> tuple[MatrixSketch | None, Projection]:
    """What projects matrices before their gradients are formed, if anything does, and what brings the rest to d."""
    parameters = trainable_parameters(model)
    sizes = {name: p.numel() for name, p in parameters.items()}
    dimension = wide_dimension(recipe.dimension) if recipe.directions else recipe.dimension
    sketch: MatrixSketch | None = None
    if recipe.projection in ("factored", "tensorsketch"):
        make = make_factors if recipe.projection == "factored" else make_tensor_sketch
        device = next(iter(parameters.values())).device
        sketch = make({n: p.shape for n, p in parameters.items()}, dimension, recipe.seed, device)
        sizes = sketch.sizes
    projection = make_projection(recipe.projection, sum(sizes.values()), dimension, recipe.seed)
    if recipe.directions:
        basis = read_directions(recipe.directions).basis
        projection = DirectedProjection(projection, basis, recipe.dimension, recipe.seed)
    return sketch, projection


def finished_store(folder: Path, rows: int, recipe: Recipe, provenance: Mapping[str, Any]) -> FeatureStore | None:
    """The store in a folder if it stands whole and was made with these settings: then no model is needed."""
    if not (folder / "manifest.json").exists():
        return None
    store = FeatureStore(folder)
    made = _provenance(recipe, store.manifest["dimension"], provenance)
    if recipe.projection != "none" and store.manifest["dimension"] != recipe.dimension:
        return None
    if store.manifest["provenance"] != made or store.num_rows != rows or store.missing():
        return None
    return store


def open_store(
    folder: Path, encoded: EncodedRows, weights: list[float], recipe: Recipe, dimension: int,
    provenance: Mapping[str, Any],
) -> FeatureStore:  # fmt: skip
    """Open the store in a folder, or begin one; refuse one made otherwise."""
    return begin_store(
        folder, len(encoded), dimension, weights, dtype=recipe.dtype, shard_rows=recipe.rows_a_shard(len(encoded)),
        provenance=_provenance(recipe, dimension, provenance),
    )  # fmt: skip


def _provenance(recipe: Recipe, dimension: int, other: Mapping[str, Any]) -> dict[str, Any]:
    """What shaped the features. The batch size is not part of it: it changes them by rounding only."""
    directions = {"directions": read_directions(recipe.directions).digest} if recipe.directions else {}
    return {
        **other, "version": VERSION, "dimension": dimension, "projection": recipe.projection, "seed": recipe.seed,
        "preconditioner": recipe.preconditioner, "momentum": recipe.momentum, "dtype": recipe.dtype, **directions,
    }  # fmt: skip


def batch_features(
    gradients: ExampleGradients, encoded: EncodedRows, rows: list[int], projection: Projection,
    direction: Preconditioning,
) -> dict[str, Tensor]:  # fmt: skip
    """One batch: capture, precondition, project, scale to unit norm. All on the CPU, float32.

    The blocks of (B, P) are used up as backward makes them: one parameter at a time, on a GPU neighbours together.

    Args:
        gradients: with the sketch of `direction`.
    """
    parameters, sketch = gradients.parameters, gradients.sketch
    device = next(iter(parameters.values())).device
    sizes = {name: p.numel() if sketch is None else sketch.sizes[name] for name, p in parameters.items()}
    alone = device.type == "cpu" or (sketch is not None and direction.kind != "sgd")
    accumulator = projection.start(len(rows), device)
    squares = torch.zeros(len(rows), device=device)

    def consume(names: Sequence[str], offset: int, block: Tensor) -> None:
        squares.add_(torch.linalg.vector_norm(block.flatten(1), dim=1).square())
        stepped = direction(names[0], block) if len(names) == 1 else direction.of_neighbours(names, block)
        projection.add(accumulator, offset, stepped.flatten(1))

    together = Together(sizes, 0 if alone else NUMBERS // len(rows), consume)
    losses = gradients(collate(encoded, rows, device), together)
    for name in together.waiting():  # no gradient reached it: zero, which momentum still moves
        zeros = torch.zeros(len(rows), *parameters[name].shape, device=device)
        together(name, zeros if sketch is None else reduced(sketch, name, zeros))
    projected = projection.finish(accumulator)
    norms = projected.norm(dim=1)
    unit = projected / norms.where(norms > 0, 1.0)[:, None]
    made = {"features": unit, "norms": norms, "gradient_norms": squares.sqrt(), "losses": losses}
    found = {name: values.cpu() for name, values in made.items()}
    _refuse_what_is_not_finite(encoded, rows, found)
    if sketch is not None and direction.kind != "sgd":
        found["gradient_norms"].fill_(math.nan)  # of scaled gradients: those of the plain ones are not known
    return found


def _refuse_what_is_not_finite(encoded: EncodedRows, rows: list[int], found: Mapping[str, Tensor]) -> None:
    """On the CPU: asked of a GPU, each number would wait for all of its work."""
    finite = torch.stack([found[name].isfinite() for name in ("norms", "gradient_norms", "losses")]).all(dim=0)
    for place in (~finite).nonzero().flatten().tolist():
        raise row_error(
            encoded, rows[place], f"loss {found['losses'][place]:.4g}, gradient norm "
            f"{found['gradient_norms'][place]:.4g}: not finite. Try --dtype float32, or look at this row."
        )  # fmt: skip


def check_gradients(model: nn.Module, encoded: EncodedRows, sketch: MatrixSketch | None = None) -> None:
    """Compare the hooks with plain autograd on two rows of this very model, once a checkpoint.

    Weights used outside their module (as some adapters do) would otherwise give wrong gradients in silence.

    Raises:
        ModelError: they differ by more than the rounding of the model's dtype.
    """
    parameters = trainable_parameters(model)
    first = next(iter(parameters.values()))
    rows = _telling_rows(encoded.lengths[:256])
    found: dict[str, Tensor] = {}
    both = collate(encoded, rows, first.device)
    batch_gradients(model, both, parameters, lambda name, block: found.update({name: block[0].clone()}), sketch)
    refuse_unseen(model, both, {name: p for name, p in parameters.items() if name not in found})
    was_training = model.training
    model.eval()
    loss = model(**collate(encoded, rows[:1], first.device), use_cache=False).loss
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    model.train(was_training)
    off = whole = 0.0
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        expected = (torch.zeros_like(parameter) if gradient is None else gradient).float()[None]
        expected = expected[0] if sketch is None else reduced(sketch, name, expected)[0]
        off += float((found.get(name, torch.zeros_like(expected)) - expected).square().sum())
        whole += float(expected.square().sum())
    allowed = 1e-3 if first.dtype == torch.float32 else 0.2  # rounding alone
    error = (off / max(whole, 1e-60)) ** 0.5
    if error > allowed:
        raise ModelError(
            f"per-example gradients differ from this model's own by {error:.1%}: some trained weight is used in a way "
            "that hooks do not see. Use plain LoRA on attention projections, or name plain Linear weights."
        )


def _telling_rows(lengths: NDArray[np.int32]) -> list[int]:
    """Two short rows, but not the shortest: attention over one or two tokens has no gradient to compare."""
    enough = 8
    rank = np.where(lengths >= enough, lengths, lengths.max() + enough - lengths)
    return np.argsort(rank, kind="stable")[:2].tolist()


def to_one_dtype(model: nn.Module) -> None:
    """Adapters trained in float32 compute in the model's own dtype here [ours]: no conversions between the two.

    Buffers stay as they are: rotary positions are computed in float32 in every model.
    """
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad and p.is_floating_point()}
    if len(frozen) == 1:
        dtype = frozen.pop()
        for parameter in trainable_parameters(model).values():
            parameter.data = parameter.data.to(dtype)


@contextmanager
def as_extracted(model: nn.Module) -> Iterator[None]:
    """The weights in the type in which extraction computes; those that are trained are as before afterwards."""
    before = [(parameter, parameter.data) for parameter in trainable_parameters(model).values()]
    to_one_dtype(model)
    try:
        yield
    finally:
        for parameter, weights in before:
            parameter.data = weights


def _direction(
    model: nn.Module, checkpoints: Checkpoints, number: int, recipe: Recipe, sketch: MatrixSketch | None
) -> Preconditioning:
    state = checkpoints.moments(number) if recipe.preconditioner in ("less", "adam") else None
    device = next(iter(trainable_parameters(model).values())).device
    return Preconditioning(recipe.preconditioner, state, recipe.momentum, device, sketch)
