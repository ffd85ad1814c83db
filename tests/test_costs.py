"""Operations counted from a model's shape are those that torch counts while the work is done."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pursuit.gradients import trainable_parameters
from pursuit.gradients.capture import batch_gradients
from pursuit.gradients.factors import make_factors
from pursuit.inspection.costs import shape_of
from test_gradients import batch_of, with_lora
from tiny import VOCABULARY, tiny_model

LAYERS, ROWS, TOKENS = 8, 3, 40


def counted(model, sketch=None):
    """By torch, of a batch in which every token but the first is labelled."""
    ids = torch.randint(3, VOCABULARY, (ROWS, TOKENS))
    batch = batch_of([(row, row) for row in ids])
    with FlopCounterMode(display=False) as counter:
        batch_gradients(model, batch, trainable_parameters(model), lambda *_: None, sketch)
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_lora(kind):
    size = {"n_layer": LAYERS} if kind == "gpt2" else {"num_hidden_layers": LAYERS}
    model = with_lora(kind, attn_implementation="eager", **size)
    expected = shape_of(model).operations(ROWS * TOKENS, TOKENS, ROWS * (TOKENS - 1))
    assert counted(model) == pytest.approx(expected, rel=0.1)  # the lowest layer's inputs are not differentiated


@pytest.mark.parametrize("factored", [False, True])
def test_the_matrices_of_the_model_itself(factored):
    model = tiny_model("llama", num_hidden_layers=LAYERS, attn_implementation="eager")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("proj" in name)
    shapes = {name: p.shape for name, p in trainable_parameters(model).items()}
    factors = make_factors(shapes, 4 * len(shapes), seed=0, least=1) if factored else None
    expected = shape_of(model, factors).operations(ROWS * TOKENS, TOKENS, ROWS * (TOKENS - 1))
    assert counted(model, factors) == pytest.approx(expected, rel=0.12)
