"""The loss of an example: mean cross-entropy over its own response tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pursuit.batches import IGNORED
from pursuit.errors import DataError
from pursuit.gradients.split import SplitModel, forward_arguments, forward_inputs, split_model

Batch = Mapping[str, Tensor]

LOGITS_AT_ONCE = 1 << 25  # 128 MiB in float32: larger costs memory, much smaller costs time


def example_losses(
    model: nn.Module, batch: Batch, *, head_apart: bool = True, split: SplitModel | None = None
) -> Tensor:
    """Mean cross-entropy of each example over its own labelled tokens (LESS, arXiv 2402.04333, section 2).

    Args:
        model: a causal language model that returns `.logits`.
        batch: `input_ids`, `attention_mask` and `labels`, each (B, T); a label of -100 is not learnt from. Padding
            may stand on either side.
        head_apart, split: see `token_losses`.

    Returns:
        (B,) float32 losses in nats a token, with graph. An example without a label has loss 0.
    """
    return mean_by_example(*token_losses(model, batch, head_apart=head_apart, split=split))


def check_batch(batch: Batch) -> None:
    """DataError unless `input_ids`, `attention_mask` and `labels` are tensors of one shape (B, T)."""
    shapes = {}
    for name in ("input_ids", "attention_mask", "labels"):
        value = batch.get(name)
        if not isinstance(value, Tensor) or value.dim() != 2:
            found = "missing" if value is None else getattr(value, "shape", type(value).__name__)
            raise DataError(f"a batch needs {name}, a tensor of (rows, tokens); here it is {found}.")
        shapes[name] = tuple(value.shape)
    if len(set(shapes.values())) > 1:
        raise DataError(f"a batch's tensors must be of one shape (rows, tokens), not {shapes}.")


def mean_by_example(losses: Tensor, labelled: Tensor) -> Tensor:
    """(B,) mean of each example's own token losses, from what `token_losses` returns."""
    spread = torch.zeros(labelled.shape, device=losses.device).masked_scatter(labelled, losses)
    return spread.sum(dim=1) / labelled.sum(dim=1).clamp(min=1)


def token_losses(
    model: nn.Module, batch: Batch, *, head_apart: bool = True, split: SplitModel | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every labelled token of a batch.

    Logits are made only of labelled tokens, a few at a time, so a large vocabulary costs no memory; nothing of them is
    kept for the backward pass but the slope of each loss by its hidden state.

    Args:
        head_apart: allow that. Without, or where weights above the model's body are trained (`lm_head`, or embeddings
            tied to it), all logits of the batch stand in memory at once, within one graph.

        split: the model's, where it was made before; to make it goes through all modules.

    Returns:
        (n,) float32 losses in nats, with graph, and the (B, K) mask of their places, row by row: K positions of the
        batch at which some example has a label.
    """
    predictable = batch["attention_mask"][:, :-1].bool()  # a first token follows padding or nothing: no prediction
    labels = batch["labels"][:, 1:].where(predictable, IGNORED)  # the logits at position t predict token t + 1
    positions = (labels != IGNORED).any(dim=0).nonzero().squeeze(1)
    kept = labels[:, positions]  # (B, K)
    labelled = kept != IGNORED
    if len(positions) == 0:
        return torch.zeros(0, device=labels.device), labelled
    split = (split or split_model(model)) if head_apart else None
    if split is not None and not split.trains_head():
        try:
            return hidden_losses(split, split.hidden(batch), labels), labelled
        finally:
            split.forget()
    inputs = forward_inputs(model, batch)
    if "logits_to_keep" in forward_arguments(model):
        logits = model(**inputs, logits_to_keep=positions).logits
    else:
        logits = model(**inputs).logits[:, positions]
    return F.cross_entropy(logits[labelled].float(), kept[labelled], reduction="none"), labelled


def hidden_losses(split: SplitModel, hidden: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of every labelled token, from hidden states that `split` has just made.

    Args:
        hidden: (B, T, H).
        labels: (B, T − 1) of the token after each position; -100 for none.

    Returns:
        (n,) float32, row by row.
    """
    labelled = labels != IGNORED
    at_once = max(1, LOGITS_AT_ONCE // split.vocabulary())
    losses: Tensor = _HiddenLosses.apply(hidden[:, :-1][labelled], labels[labelled], split.logits, at_once)
    return losses


class _HiddenLosses(torch.autograd.Function):
    """Cross-entropy from hidden states. A token's loss depends on its own hidden state alone, so its slope is taken at
    once, with the logits still there, and backward only scales it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, labels: Tensor, logits: Callable[[Tensor], Tensor], at_once: int) -> Tensor:
        losses = torch.empty(len(rows), device=rows.device)
        slopes = torch.empty_like(rows) if ctx.needs_input_grad[0] else None
        for start in range(0, len(rows), at_once):
            few = slice(start, start + at_once)
            part = rows[few].detach().requires_grad_(slopes is not None)
            with torch.set_grad_enabled(slopes is not None):
                found = F.cross_entropy(logits(part).float(), labels[few], reduction="none")
                if slopes is not None:
                    (slopes[few],) = torch.autograd.grad(found.sum(), part)
            losses[few] = found.detach()
        ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes * gradients[0][:, None]).to(slopes.dtype), None, None, None
