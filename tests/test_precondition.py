"""The preconditioners match plain transcriptions of their formulas and torch's own Adam."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pursuit.gradients import AdamState, precondition


def state_for(shape, step=10, scale=1e-3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    average = torch.randn(shape, generator=generator) * scale
    square = torch.rand(shape, generator=generator) * scale**2
    return AdamState({"w": average}, {"w": square}, step)


@given(seed=st.integers(0, 99), scale=st.sampled_from([1e-7, 1e-3, 1.0]), momentum=st.booleans())
def test_less_is_the_released_formula(seed, scale, momentum):
    state = state_for((3, 2), scale=scale, seed=seed)
    gradient = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(seed + 1)) * scale
    found = precondition(gradient, "less", "w", state, momentum)
    for example in range(4):
        for place in np.ndindex(3, 2):
            g, m, v = (float(x[place]) for x in (gradient[example], state.exp_avg["w"], state.exp_avg_sq["w"]))
            m_new = (0.9 * m if momentum else 0) + 0.1 * g
            v_new = 0.999 * v + 0.001 * g * g
            assert float(found[example][place]) == pytest.approx(m_new / (v_new + 1e-8) ** 0.5, rel=2e-5, abs=1e-12)


def test_adam_is_the_step_that_torch_takes():
    generator = torch.Generator().manual_seed(3)
    weight = torch.nn.Parameter(torch.randn(5, 4, generator=generator))
    optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0)
    for _ in range(7):
        weight.grad = torch.randn(5, 4, generator=generator)
        optimizer.step()
    moments = optimizer.state[weight]
    state = AdamState({"w": moments["exp_avg"].clone()}, {"w": moments["exp_avg_sq"].clone()}, step=7)
    gradient = torch.randn(5, 4, generator=generator)
    before = weight.detach().clone()
    direction = precondition(gradient[None].clone(), "adam", "w", state)[0]
    weight.grad = gradient
    optimizer.step()
    torch.testing.assert_close(before - weight.detach(), 0.01 * direction, rtol=1e-4, atol=1e-7)


def test_less_at_lora_scale_is_momentum_plus_gradient():
    """What the docstring says: ε inside the root drowns second moments of 1e-14."""
    state = state_for((50,), scale=1e-7)
    gradient = torch.randn(2, 50, generator=torch.Generator().manual_seed(5)) * 1e-7
    plain = 0.9 * state.exp_avg["w"] + 0.1 * gradient
    found = precondition(gradient, "less", "w", state)
    assert torch.cosine_similarity(found, plain).min() > 0.99999


def test_sgd_and_sign():
    gradient = torch.tensor([[-2.0, 0.0, 3.0]])
    assert torch.equal(precondition(gradient, "sgd", "w", None), gradient)
    assert torch.equal(precondition(gradient, "sign", "w", None), torch.tensor([[-1.0, 0.0, 1.0]]))


def test_input_is_left_alone():
    gradient = torch.randn(2, 6)
    kept = gradient.clone()
    for kind in ("less", "adam"):
        precondition(gradient, kind, "w", state_for((6,)))
    assert torch.equal(gradient, kept)
