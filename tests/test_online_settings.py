"""Schedules, cheaper scores, states that are restored, and settings that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from online_batches import EIGHT, make_batch
from pursuit.errors import DataError, SelectionError, SettingsError, StoreError
from pursuit.online import (
    FullBatch,
    HardestBatch,
    InfoBatch,
    OptBatch,
    RandomBatch,
    batch_selection,
    load_state,
    save_state,
    take,
)  # fmt: skip
from pursuit.online.batch import kept_count
from tiny import tiny_model


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5] * 5), ("warmup", [0, 0.25, 0.5, 0.5, 0.5]), ("anneal", [0.5, 0.5, 0.5, 0.25, 0]),
        (lambda share: share / 2, [0, 0.125, 0.25, 0.375, 0.5]),
    ],
)  # fmt: skip
def test_schedules(schedule: Any, rates: list[float]) -> None:
    selector = OptBatch(prune=0.5, schedule=schedule, ramp=0.5)
    for step, rate in enumerate(rates):
        selector.at(step, 4)
        assert selector.rate() == pytest.approx(rate)
    assert OptBatch(prune=0.5, schedule="warmup", total_steps=10).rate() == 0
    with pytest.raises(SettingsError, match="total_steps"):
        OptBatch(prune=0.5, schedule="warmup").rate()
    with pytest.raises(SettingsError, match=r"returned 1\.5"):
        OptBatch(schedule=lambda share: 1.5, total_steps=1).rate()
    with pytest.raises(SettingsError, match=r"infobatch: anneal=0\.125 .*0 for none\) needs total_steps"):
        InfoBatch(prune=0.5).rate()


def test_scores_are_carried_over_from_the_last_visit() -> None:
    model, batch = tiny_model("llama"), {**make_batch(EIGHT), "example_ids": torch.arange(8)}
    selector = OptBatch(prune=0.5, carry=3, feature="grad_norm")
    runs: list[int] = []
    model.model.register_forward_hook(lambda module, inputs, output: runs.append(len(output.last_hidden_state)))
    chosen = []
    for _ in range(4):
        before = len(runs)
        selector(model, batch)
        chosen.append(selector.last.order.tolist())  # type: ignore[union-attr]
        runs[before:] = [sum(runs[before:])]
    assert runs == [9, 0, 0, 8]  # the first call also looks at the logits of one example
    assert chosen == [chosen[0]] * 4
    new = {**make_batch(EIGHT, seed=5), "example_ids": torch.tensor([0, 1, 2, 3, 10, 11, 12, 13])}
    runs.clear()
    selector(model, new)
    assert runs == [4]  # those seen before are within their visits


def test_carried_and_fresh_features_have_one_scale() -> None:
    model, batch = tiny_model("llama"), {**make_batch(EIGHT), "example_ids": torch.arange(8)}
    selector = OptBatch(prune=0.5, carry=9, strata=1)
    selector(model, batch)  # before the first gradient: nothing is scaled
    selector._moment.update(torch.full((512,), 1e-12), 512, torch.device("cpu"))  # now features are 10⁶ times as long
    mixed = {**make_batch(EIGHT), "example_ids": torch.tensor([0, 1, 2, 3, 14, 15, 16, 17])}
    selector(model, mixed)
    norms = np.linalg.norm(selector._memory.features(np.array([0, 1, 2, 3, 14, 15, 16, 17])), axis=1)
    assert norms.max() / norms.min() < 10


def test_every_kth_call_is_scored_and_the_others_are_random_or_carried() -> None:
    model, batch = tiny_model("llama"), {**make_batch(EIGHT), "example_ids": torch.arange(8)}
    for between in ("random", "carried"):
        selector = OptBatch(prune=0.5, every=3, between=between, feature="grad_norm")  # type: ignore[arg-type]
        scored, orders = [], []
        for _ in range(6):
            selector(model, batch)
            assert selector.last is not None
            scored.append(selector.last.scored_tokens > 0)
            orders.append(selector.last.order.tolist())
        assert scored == [True, False, False] * 2
        assert len({tuple(order) for order in orders}) == (1 if between == "carried" else 5)


def test_remembering_needs_ids() -> None:
    for selector in (OptBatch(prune=0.5, carry=2), InfoBatch(prune=0.5, anneal=0)):
        with pytest.raises(DataError, match="'example_ids': one whole number a candidate"):
            selector(tiny_model("llama"), make_batch())


def test_forgetting_to_observe_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pursuit.online.optbatch.UNOBSERVED", 3)
    selector, model, batch = OptBatch(prune=0.5), tiny_model("llama"), make_batch()
    for _ in range(3):
        selector(model, batch)
    with pytest.raises(SelectionError, match=r"without observe\(model\)"):
        selector(model, batch)
    with pytest.raises(SelectionError, match="no gradient to observe"):
        selector.observe(model)


def settings_of_a_state() -> list[Any]:
    return [
        OptBatch(prune=0.5), OptBatch(prune=0.5, moment="examples"), OptBatch(prune=0.5, carry=2),
        OptBatch(prune=0.5, counts="drawn"), RandomBatch(prune=0.5), HardestBatch(prune=0.5), FullBatch(),
        InfoBatch(prune=0.5, anneal=0),
    ]  # fmt: skip


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("lora", [False, True])
def test_a_restored_selector_goes_on_as_the_one_that_never_stopped(place: int, lora: bool, tmp_path: Any) -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    model = get_peft_model(model, LoraConfig(r=2)) if lora else model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    going, restored = settings_of_a_state()[place], settings_of_a_state()[place]

    def step(selectors: list[Any], seed: int) -> None:
        batch = {**make_batch(EIGHT, seed=seed), "example_ids": (torch.arange(8) + 3 * seed) % 16}
        orders = []
        for selector in selectors:
            selector(model, batch)
            orders.append(selector.last.order.tolist())
        assert all(order == orders[0] for order in orders)
        loss = model(**take({k: v for k, v in batch.items() if k != "example_ids"}, selectors[0].last.indices)).loss
        loss.backward()
        for selector in selectors:
            if isinstance(selector, InfoBatch):
                selector.remember(batch["example_ids"], torch.arange(8.0) + seed % 3)
            selector.observe(model)
        optimizer.step()
        optimizer.zero_grad()

    for seed in range(4):
        step([going], seed)
    save_state(going, tmp_path / "state.safetensors")
    load_state(restored, tmp_path / "state.safetensors")
    for seed in range(4, 8):
        step([going, restored], seed)


def test_a_state_that_does_not_belong_is_refused(tmp_path: Any) -> None:
    save_state(RandomBatch(), tmp_path / "state.safetensors")
    with pytest.raises(StoreError, match="the state of 'random', not of 'optbatch'"):
        load_state(OptBatch(), tmp_path / "state.safetensors")
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="cannot be read as safetensors"):
        load_state(OptBatch(), tmp_path / "state.safetensors")


def test_a_state_of_other_settings_goes_on_and_says_so(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "state.safetensors"
    save_state(OptBatch(prune=0.3, schedule=lambda share: share / 2, total_steps=9), path)
    load_state(OptBatch(prune=0.3, schedule=lambda share: share / 3, total_steps=9), path)
    assert capsys.readouterr().err == ""
    load_state(OptBatch(prune=0.5, schedule="warmup", total_steps=9), path)
    told = " ".join(capsys.readouterr().err.split())
    assert "state.safetensors is of a training with prune=0.3, schedule='a function'; " in told
    assert "optbatch goes on with prune=0.5, schedule='warmup'." in told


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("optbach", {}, "no batch selection 'optbach'. Did you mean 'optbatch'"),
        ("optbatch", {"prun": 0.3}, "no setting 'prun'. Did you mean 'prune'"),
        ("optbatch", {"prune": 1.0}, "prune=1.0 cannot be used. It must be a number, at least 0 and below 1"),
        ("optbatch", {"strata": 0}, "strata=0 cannot be used. It must be a whole number, at least 1"),
        ("optbatch", {"feature": "hessian"}, '"second_moment" or "grad_norm" or "embedding"'),
        ("optbatch", {"schedule": "sometimes"}, "schedule='sometimes' cannot be used"),
        ("optbatch", {"schedule": "sometimes"}, 'It must be "constant" or "warmup" or "anneal" or a function: How'),
        ("full", {"prune": 0.3}, "full: prune=0.3 cannot be used"),
    ],
)
def test_wrong_settings_are_named_with_what_would_be_right(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        batch_selection(name, **settings)
    assert message in str(error.value)
    assert str(error.value).count("cannot be used") <= 1


def test_an_exit_beyond_the_last_layer_is_named() -> None:
    with pytest.raises(SettingsError, match=r"exit_layer=3: LlamaForCausalLM has 2 layers; give 1 … 2"):
        OptBatch(prune=0.5, exit_layer=3)(tiny_model("llama"), make_batch())


@given(st.integers(2, 12), st.floats(0.05, 0.95), st.integers(1, 6), st.sampled_from(["quantile", "width"]))
def test_any_shape_of_batch_keeps_n(size: int, prune: float, strata: int, cut: Any) -> None:
    assume(kept_count(size, prune) < size)
    selector = OptBatch(prune=prune, strata=strata, cut=cut)
    keep = selector(SHARED, make_batch(tuple(8 + i for i in range(size))))
    assert len(keep) == kept_count(size, prune)
    assert keep.dtype == torch.int64
    assert (keep[1:] > keep[:-1]).all()


SHARED = tiny_model("llama")
