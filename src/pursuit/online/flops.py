"""Floating-point operations of a step by the usual count: 2 a weight and token forward, 4 backward."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from torch import nn

from pursuit.errors import ModelError
from pursuit.models.quantized import entries
from pursuit.online.head import find_head, language_model


@dataclass(frozen=True)
class ModelFlops:
    """Operations a token: `forward`, and `train` for forward and backward."""

    forward: float
    train: float


def model_flops(model: nn.Module) -> ModelFlops:
    """2 N forward, 2 N for the gradient of the activations and 2 N_trained for that of the weights, a token.

    N are the weights in products: all but embedding tables, of which the head's is none even when it is tied. With full
    training it is the well-known 6 N. Products of attention with itself are left out, as usual.
    """
    base = language_model(model)
    tables = {id(module.weight) for module in base.modules() if isinstance(module, nn.Embedding)}
    with contextlib.suppress(ModelError):
        tables -= {id(find_head(model).weight)}
    weights = [p for p in base.parameters() if id(p) not in tables]
    every = sum(entries(p) for p in weights)
    trained = sum(p.numel() for p in weights if p.requires_grad)
    return ModelFlops(forward=2.0 * every, train=4.0 * every + 2.0 * trained)
