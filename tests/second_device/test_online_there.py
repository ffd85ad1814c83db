"""Batch selection on a second device."""

from __future__ import annotations

import pytest
import torch
from pretend import NAME

from online_batches import EIGHT, make_batch
from pursuit.online import OptBatch
from pursuit.online.head import find_head
from pursuit.online.scorer import Scorer
from tiny import tiny_model


@pytest.mark.parametrize("feature", ["second_moment", "grad_norm", "embedding"])
@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "llama"])
def test_features_are_those_of_the_cpu_and_repeat_bit_for_bit(kind: str, feature: str) -> None:
    model, batch = tiny_model(kind), make_batch(EIGHT)
    expected = Scorer(feature, 64, 0, 2**25, None, None)(model, batch, find_head(model))
    model = model.to(NAME)
    batch = {name: value.to(NAME) for name, value in batch.items()}
    found = [Scorer(feature, 64, 0, 2**25, None, None)(model, batch, find_head(model)) for _ in range(2)]
    torch.testing.assert_close(
        torch.from_numpy(found[0].features), torch.from_numpy(expected.features), rtol=1e-3, atol=1e-4
    )
    assert (found[0].features == found[1].features).all()


def test_choosing_leaves_the_random_state() -> None:
    model, batch = tiny_model("llama").to(NAME), {name: value.to(NAME) for name, value in make_batch(EIGHT).items()}
    state_of = torch.cuda.get_rng_state if NAME == "cuda" else torch.get_rng_state
    state = state_of()
    keep = OptBatch(prune=0.5)(model, batch)
    assert keep.device == batch["input_ids"].device
    assert torch.equal(state_of(), state)
