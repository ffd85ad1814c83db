"""What must hold on a GPU; run where there is one."""

from __future__ import annotations

import pytest
import torch

from online_batches import EIGHT, make_batch
from pursuit.online import OptBatch
from pursuit.online.head import find_head
from pursuit.online.scorer import Scorer
from tiny import tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def test_features_on_a_gpu_are_those_of_the_cpu_and_repeat_bit_for_bit() -> None:
    model, batch = tiny_model("gemma2"), make_batch(EIGHT)
    expected = Scorer("grad_norm", 64, 0, 2**25, None, None)(model, batch, find_head(model))
    model = model.cuda()
    batch = {name: value.cuda() for name, value in batch.items()}
    found = [Scorer("grad_norm", 64, 0, 2**25, None, None)(model, batch, find_head(model)) for _ in range(2)]
    torch.testing.assert_close(
        torch.from_numpy(found[0].features), torch.from_numpy(expected.features), rtol=1e-3, atol=1e-4
    )
    assert (found[0].features == found[1].features).all()


def test_choosing_on_a_gpu_leaves_its_random_state() -> None:
    model, batch = tiny_model("llama").cuda(), {name: value.cuda() for name, value in make_batch(EIGHT).items()}
    state = torch.cuda.get_rng_state()
    keep = OptBatch(prune=0.5)(model, batch)
    assert keep.device == batch["input_ids"].device
    assert torch.equal(torch.cuda.get_rng_state(), state)
