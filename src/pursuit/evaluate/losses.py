"""Mean response loss of every row, without gradients."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pursuit.batches import collate, plan_batches, where_it_fits
from pursuit.errors import ModelError
from pursuit.evaluate.rows import EvalSet
from pursuit.gradients.losses import example_losses
from pursuit.progress import progress


def response_losses(model: nn.Module, data: EvalSet, batch_tokens: int) -> NDArray[np.float64]:
    """(N,) mean cross-entropy over each row's response tokens, in nats a token.

    Raises:
        ModelError: a loss is not a number: the model's weights are broken.
    """
    losses = np.zeros(len(data))
    device = next(model.parameters()).device
    with torch.inference_mode(), progress("loss", len(data)) as advance:
        planned = plan_batches(range(len(data)), data.lengths, batch_tokens)
        for batch, found in where_it_fits(
            planned, data.lengths, lambda rows: example_losses(model, collate(data, rows, device))
        ):
            losses[batch] = found.cpu().double().numpy()
            advance(len(batch))
    if not np.isfinite(losses).all():
        broken = np.flatnonzero(~np.isfinite(losses))
        example = data.rows[int(broken[0])].example
        raise ModelError(
            f"the model's loss is not a number on {len(broken):,} of {len(data):,} rows, the first {example.path}, "
            f"line {example.line}. Has its training diverged?"
        )
    return losses
