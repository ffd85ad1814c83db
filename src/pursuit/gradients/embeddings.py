"""A forward pass over the pool: an embedding and the loss of every row, from the model as it was given.

The embedding is that of RDS+ (Ivison et al. 2025, arXiv 2503.01807; the weighting is SGPT's, arXiv 2202.08904): the
mean of the last hidden states over the whole example, prompt and response, in which the i-th of L tokens weighs
i / (1 + 2 + … + L), scaled to unit length. A forward pass costs about half of one checkpoint's gradients and a tenth
of their memory, there is one of it instead of one for each checkpoint, and no warm-up is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from pursuit.batches import IGNORED, EncodedRows, collate
from pursuit.errors import ModelError
from pursuit.gradients.losses import Batch, hidden_losses, mean_by_example
from pursuit.gradients.shards import Compute, begin_store, fill_store, row_error
from pursuit.gradients.split import SplitModel, split_model
from pursuit.recipes import SHORTEST_SHARD, Recipe, StoredType
from pursuit.store.features import FeatureStore


def embed(
    model: nn.Module, encoded: EncodedRows, folder: Path, *, provenance: Mapping[str, Any],
    dtype: StoredType = Recipe.dtype, batch_tokens: int = Recipe.batch_tokens, shard_rows: int = SHORTEST_SHARD,
    shards: Iterable[int] | None = None, describe: str = "embeddings",
) -> FeatureStore:  # fmt: skip
    """Fill a feature store of one checkpoint with the rows' embeddings and losses; what already stands whole is kept.

    The store holds unit-norm embeddings (d is the model's hidden size), `norms` of the embeddings before they were
    scaled, `losses` at this model, and NaN for `gradient_norms`.

    Args:
        model: a causal language model. An adapter on it is left out: the base model's weights are used, as they are.
        dtype: of the stored rows, see `pursuit.store.codecs`.
        batch_tokens: padded tokens a batch, which bounds the memory.
        provenance: everything else that shaped the embeddings (model, data), JSON-able.
        shards: only these shard numbers; all without.

    Raises:
        StoreError: the folder holds features made with other settings (each difference is named).
        DataError: a row whose loss or embedding is not finite, or that does not fit in memory alone.
        ModelError: the model's hidden states cannot be had.
    """
    split = split_model(model)
    if split is None:
        raise ModelError(
            f"{type(model).__name__}: its last hidden states cannot be told from its logits, so it has no embeddings. "
            "Use a causal language model of transformers."
        )
    store = begin_store(
        folder, len(encoded), split.width(), [1.0], dtype=dtype, shard_rows=shard_rows,
        provenance=_provenance(dtype, split.width(), provenance),
    )  # fmt: skip

    def at(_: int) -> Compute:
        return lambda rows: batch_embeddings(split, encoded, rows)

    was_training = model.training
    model.eval()
    try:
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            fill_store(store, encoded, at, batch_tokens, shards=shards, describe=describe)
    finally:
        model.train(was_training)
    return store


def finished_embeddings(
    folder: Path, num_rows: int, *, provenance: Mapping[str, Any], dtype: StoredType = Recipe.dtype
) -> FeatureStore | None:
    """The store in a folder if it stands whole and was made with these settings: then no model is needed."""
    if not (folder / "manifest.json").exists():
        return None
    store = FeatureStore(folder)
    made = _provenance(dtype, store.manifest["dimension"], provenance)
    if store.manifest["provenance"] != made or store.num_rows != num_rows or store.missing():
        return None
    return store


def _provenance(dtype: str, dimension: int, other: Mapping[str, Any]) -> dict[str, Any]:
    return {**other, "features": "mean hidden state, weighted by position", "dimension": dimension, "dtype": dtype}


@torch.no_grad()
def batch_embeddings(split: SplitModel, encoded: EncodedRows, rows: list[int]) -> dict[str, Tensor]:
    """One batch: the tensors of the store for these rows, on the CPU, float32."""
    device = split.device()
    batch = collate(encoded, rows, device)
    hidden = split.hidden(batch)
    pooled = position_weighted_mean(hidden, batch["attention_mask"])
    losses = _losses(split, hidden, batch)
    norms = torch.linalg.vector_norm(pooled, dim=1)
    unit = pooled / norms.where(norms > 0, 1.0)[:, None]
    unknown = torch.full_like(norms, torch.nan)
    found = {"features": unit, "norms": norms, "gradient_norms": unknown, "losses": losses}
    found = {name: values.cpu() for name, values in found.items()}
    _refuse_what_is_not_finite(encoded, rows, found["losses"], found["norms"])
    return found


def _refuse_what_is_not_finite(encoded: EncodedRows, rows: list[int], losses: Tensor, norms: Tensor) -> None:
    """On the CPU: asked of a GPU, each number would wait for all of its work."""
    for place in (~(losses.isfinite() & norms.isfinite())).nonzero().flatten().tolist():
        raise row_error(
            encoded, rows[place], f"loss {losses[place]:.4g}, norm of the embedding {norms[place]:.4g}: not finite. "
            "Try --dtype float32, or look at this row."
        )  # fmt: skip


def position_weighted_mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Σ_i i · h_i / Σ_i i over the tokens of each example, counted from 1 at its first; padding on either side is out.

    Args:
        hidden: (B, T, H).
        attention_mask: (B, T), 1 for tokens.

    Returns:
        (B, H) float32.
    """
    positions = (attention_mask.cumsum(1) * attention_mask).float()
    weights = positions / positions.sum(dim=1, keepdim=True).clamp(min=1)
    kept = hidden.masked_fill(attention_mask[..., None] == 0, 0)  # 0 · NaN of a padded place would be NaN
    return torch.bmm(weights[:, None], kept.float()).squeeze(1)


def _losses(split: SplitModel, hidden: Tensor, batch: Batch) -> Tensor:
    """(B,) mean loss over each example's labelled tokens, as `example_losses` defines it."""
    labels = batch["labels"][:, 1:].where(batch["attention_mask"][:, :-1].bool(), IGNORED)
    return mean_by_example(hidden_losses(split, hidden, labels), labels != IGNORED)
