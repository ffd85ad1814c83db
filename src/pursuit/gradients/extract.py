"""The pass over the pool: per-example gradients at every checkpoint, preconditioned, projected, stored by shards.

The unit of work is one shard at one checkpoint. Batches are planned within a shard, so a run that was killed, or split
over several machines, makes the same batches and the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pursuit.batches import EncodedRows, collate, plan_batches
from pursuit.errors import DataError, ModelError, StoreError
from pursuit.features import FeatureStore, write_shard
from pursuit.files import fingerprint, read_json, write_json
from pursuit.gradients.capture import batch_gradients, example_gradients
from pursuit.gradients.precondition import AdamState, Preconditioning
from pursuit.gradients.project import Projection, make_projection
from pursuit.progress import progress, say
from pursuit.recipes import Recipe
from pursuit.trainable import trainable_parameters

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


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
    _in_one_dtype(model)
    size = sum(p.numel() for p in trainable_parameters(model).values())
    projection = make_projection(recipe.projection, size, recipe.dimension, recipe.seed)
    weights = [float(weight) for weight in checkpoints.weights()]
    store = open_store(folder, encoded, weights, recipe, projection.dimension, provenance)
    wanted = None if shards is None else set(shards)
    missing = [(t, shard) for t, shard in store.missing() if wanted is None or shard in wanted]
    mine = [store.shard_range(shard) for shard in range(store.num_shards) if wanted is None or shard in wanted]
    total = store.num_checkpoints * sum(map(len, mine))
    left = sum(len(store.shard_range(shard)) for _, shard in missing)
    digest = store.manifest["provenance_digest"]
    loaded = -1
    with progress(describe, total, "rows", done=total - left) as advance:
        for checkpoint, shard in missing:
            if checkpoint != loaded:
                checkpoints.load_into(model, checkpoint)
                direction = _direction(model, checkpoints, checkpoint, recipe)
                check_gradients(model, encoded)
                loaded = checkpoint
            tensors = shard_features(model, encoded, store.shard_range(shard), recipe, projection, direction, advance)
            write_shard(store.shard_path(checkpoint, shard), tensors, digest)
    return store


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
    made = _provenance(recipe, dimension, provenance)
    manifest = {
        "format": 1, "num_rows": len(encoded), "dimension": dimension, "dtype": recipe.dtype, "weights": weights,
        "shard_rows": recipe.shard_rows, "provenance": made, "provenance_digest": fingerprint(made),
    }  # fmt: skip
    path = folder / "manifest.json"
    if path.exists():
        refuse_other_settings(folder, read_json(path), manifest)
    else:
        write_json(path, manifest)
    return FeatureStore(folder)


def _provenance(recipe: Recipe, dimension: int, other: Mapping[str, Any]) -> dict[str, Any]:
    """What shaped the features. The batch size is not part of it: it changes them by rounding only."""
    return {
        **other, "dimension": dimension, "projection": recipe.projection, "seed": recipe.seed,
        "preconditioner": recipe.preconditioner, "momentum": recipe.momentum, "dtype": recipe.dtype,
    }  # fmt: skip


def refuse_other_settings(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise a StoreError that names each setting in which a store differs from what is asked for."""
    old, new = _flat(found), _flat(wanted)
    differences = [
        f"{name}: the store has {old.get(name)!r}, now {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and name != "provenance_digest"
    ]
    if differences:
        raise StoreError(
            f"{folder}: made with other settings, so it cannot be used for these.\n  " + "\n  ".join(differences)
            + "\nChoose another run folder, or delete this one to make it anew."
        )  # fmt: skip


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat


def shard_features(
    model: nn.Module, encoded: EncodedRows, rows: range, recipe: Recipe, projection: Projection,
    direction: Preconditioning, advance: Any,
) -> dict[str, Tensor]:  # fmt: skip
    """Features of consecutive rows at the model's present weights, as the store keeps them."""
    count = len(rows)
    tensors = {
        "features": torch.empty(count, projection.dimension, dtype=DTYPES[recipe.dtype]),
        "norms": torch.empty(count), "gradient_norms": torch.empty(count), "losses": torch.empty(count),
    }  # fmt: skip
    pending = plan_batches(rows, encoded.lengths, recipe.batch_tokens)[::-1]
    while pending:
        batch = pending.pop()
        try:
            found = batch_features(model, encoded, batch, projection, direction)
        except (torch.OutOfMemoryError, MemoryError) as error:
            _halve(batch, pending, encoded, error)
            continue
        places = torch.tensor([row - rows.start for row in batch])
        for name, values in found.items():
            tensors[name][places] = values.to(tensors[name].dtype)
        advance(len(batch))
    return tensors


def _halve(batch: list[int], pending: list[list[int]], encoded: EncodedRows, error: BaseException) -> None:
    if len(batch) == 1:
        raise _row_error(
            encoded, batch[0], f"{encoded.lengths[batch[0]]} tokens do not fit in memory; lower --max-length"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    say(f"out of memory with {len(batch)} rows of {encoded.lengths[batch[0]]} tokens: going on with half as many")
    middle = len(batch) // 2
    pending += [batch[middle:], batch[:middle]]


def batch_features(
    model: nn.Module, encoded: EncodedRows, rows: list[int], projection: Projection, direction: Preconditioning
) -> dict[str, Tensor]:
    """One batch: capture, precondition, project, scale to unit norm. All on the CPU, float32.

    The blocks of (B, P) are used up one parameter at a time as backward makes them.
    """
    parameters = trainable_parameters(model)
    device = next(iter(parameters.values())).device
    offsets, begin = {}, 0
    for name, parameter in parameters.items():
        offsets[name] = begin
        begin += parameter.numel()
    accumulator = projection.start(len(rows), device)
    squares = torch.zeros(len(rows), device=device)
    waiting = set(parameters)

    def consume(name: str, block: Tensor) -> None:
        waiting.discard(name)
        squares.add_(torch.linalg.vector_norm(block.flatten(1), dim=1).square())
        projection.add(accumulator, offsets[name], direction(name, block).flatten(1))

    losses = batch_gradients(model, collate(encoded, rows, device), parameters, consume)
    for name in sorted(waiting):  # no gradient reached it: zero, which momentum still moves
        consume(name, torch.zeros(len(rows), *parameters[name].shape, device=device))
    projected = projection.finish(accumulator)
    norms = projected.norm(dim=1)
    for place, row in enumerate(rows):
        if not (torch.isfinite(losses[place]) and torch.isfinite(squares[place]) and torch.isfinite(norms[place])):
            raise _row_error(
                encoded, row, f"loss {losses[place]:.4g}, gradient norm {squares[place].sqrt():.4g}: not finite. "
                "Try --dtype float32, or look at this row."
            )  # fmt: skip
    unit = projected / norms.where(norms > 0, 1.0)[:, None]
    found = {"features": unit, "norms": norms, "gradient_norms": squares.sqrt(), "losses": losses}
    return {name: values.cpu() for name, values in found.items()}


def check_gradients(model: nn.Module, encoded: EncodedRows) -> None:
    """Compare the hooks with plain autograd on two rows of this very model, once a checkpoint.

    Weights used outside their module (as some adapters do) would otherwise give wrong gradients in silence.

    Raises:
        ModelError: they differ by more than the rounding of the model's dtype.
    """
    parameters = trainable_parameters(model)
    first = next(iter(parameters.values()))
    rows = sorted(range(min(len(encoded), 256)), key=lambda row: int(encoded.lengths[row]))[:2]
    found = example_gradients(model, collate(encoded, rows, first.device))[0]
    was_training = model.training
    model.eval()
    alone = collate(encoded, rows[:1], first.device)
    loss = model(**alone, use_cache=False).loss
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    model.train(was_training)
    expected = torch.cat([
        torch.zeros(p.numel(), device=p.device) if g is None else g.float().flatten()
        for g, p in zip(gradients, parameters.values(), strict=True)
    ])  # fmt: skip
    allowed = 1e-3 if first.dtype == torch.float32 else 0.2
    error = float((found - expected).norm() / expected.norm().clamp(min=1e-30))
    if error > allowed:
        raise ModelError(
            f"per-example gradients differ from this model's own by {error:.1%}: some trained weight is used in a way "
            "that hooks do not see. Use plain LoRA on attention projections, or name plain Linear weights."
        )


def _in_one_dtype(model: nn.Module) -> None:
    """Adapters trained in float32 compute in the model's own dtype here [ours]: no conversions between the two."""
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad and p.is_floating_point()}
    if len(frozen) == 1:
        model.to(frozen.pop())


def _direction(model: nn.Module, checkpoints: Checkpoints, number: int, recipe: Recipe) -> Preconditioning:
    state = checkpoints.moments(number) if recipe.preconditioner in ("less", "adam") else None
    device = next(iter(trainable_parameters(model).values())).device
    return Preconditioning(recipe.preconditioner, state, recipe.momentum, device)


def _row_error(encoded: EncodedRows, row: int, reason: str) -> DataError:
    table = getattr(encoded, "rows", None)
    if table is None:
        return DataError(f"row {row}: {reason}")
    return DataError(reason, path=table["path"][row].as_py(), line=table["line"][row].as_py())
