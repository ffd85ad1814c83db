"""The loss of an example: mean cross-entropy over its own response tokens."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from pursuit.batches import IGNORED

Batch = Mapping[str, Tensor]


def example_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of each example over its own labelled tokens (LESS, arXiv 2402.04333, section 2).

    Args:
        model: a causal language model that returns `.logits`.
        batch: `input_ids`, `attention_mask` and `labels`, each (B, T); a label of -100 is not learnt from. Padding
            may stand on either side.

    Returns:
        (B,) float32 losses in nats a token, with graph. An example without a label has loss 0.
    """
    losses, labelled = token_losses(model, batch)
    spread = torch.zeros(labelled.shape, device=losses.device).masked_scatter(labelled, losses)
    return spread.sum(dim=1) / labelled.sum(dim=1).clamp(min=1)


def token_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every labelled token of a batch.

    Logits are made only at positions where some example has a label: a prompt costs no vocabulary product.

    Returns:
        (n,) float32 losses in nats, with graph, and the (B, K) mask of their places, row by row: K positions of the
        batch at which some example has a label.
    """
    predictable = batch["attention_mask"][:, :-1].bool()  # a first token follows padding or nothing: no prediction
    labels = batch["labels"][:, 1:].where(predictable, IGNORED)  # the logits at position t predict token t + 1
    positions = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
    if len(positions) == 0:
        return torch.zeros(0, device=labels.device), torch.zeros(len(labels), 0, dtype=torch.bool, device=labels.device)
    accepted = _forward_arguments(model)
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if "position_ids" in accepted:  # left padding must not shift the positions
        inputs["position_ids"] = (batch["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
    if "use_cache" in accepted:
        inputs["use_cache"] = False
    if "logits_to_keep" in accepted:
        logits = model(**inputs, logits_to_keep=positions).logits
    else:
        logits = model(**inputs).logits[:, positions]
    kept = labels[:, positions]  # (B, K)
    labelled = kept != IGNORED
    losses = F.cross_entropy(logits[labelled].float(), kept[labelled], reduction="none")
    return losses, labelled


def _forward_arguments(model: nn.Module) -> set[str]:
    """Names that the language model's own forward takes (below a PEFT wrapper, which takes anything)."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return set(inspect.signature(base.forward).parameters)
