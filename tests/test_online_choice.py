"""What a batch selector promises to any PyTorch loop."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from online_batches import EIGHT, make_batch, materialised
from pursuit.errors import DataError, SelectionError, SettingsError
from pursuit.online import (
    BATCH_SELECTORS,
    HardestBatch,
    InfoBatch,
    OptBatch,
    RandomBatch,
    batch_selection,
    take,
)  # fmt: skip
from pursuit.online.batch import kept_count
from pursuit.solvers.farthest_point import farthest_point
from tiny import tiny_model


@pytest.mark.parametrize(
    ("size", "rate", "kept"),
    [(8, 0.3, 6), (8, 0.5, 4), (10, 0.7, 3), (4, 0.9, 1), (3, 0.99, 1), (1, 0.9, 1), (5, 0, 5)],
)
def test_n_is_rounded_half_up_and_at_least_one(size: int, rate: float, kept: int) -> None:
    assert kept_count(size, rate) == kept


@pytest.mark.parametrize("feature", ["second_moment", "grad_norm", "embedding"])
def test_one_stratum_of_the_batch_is_farthest_point_in_its_features(feature: Any) -> None:
    model, batch = tiny_model("llama"), make_batch(EIGHT)
    selector = OptBatch(prune=0.5, strata=1, feature=feature, projection=0)
    keep = selector(model, batch)
    if feature == "embedding":
        hidden = model.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        parts = [hidden[i, :-1][batch["labels"][i, 1:] != -100].mean(dim=0) for i in range(8)]
        features = torch.stack(parts).detach().numpy()
    else:
        features = torch.stack([materialised(model, batch, i)[1].norm(dim=1) for i in range(8)]).numpy()
    assert selector.last is not None
    assert selector.last.order.tolist() == farthest_point(features, 4)[0].tolist()
    assert keep.tolist() == sorted(selector.last.order.tolist())


def test_the_choice_goes_from_hard_to_easy_strata() -> None:
    model, batch = tiny_model("llama"), make_batch(EIGHT)
    hard, easy = OptBatch(prune=0.4), OptBatch(prune=0.4, order="easy-first")
    hard(model, batch), easy(model, batch)
    assert hard.last is not None
    assert easy.last is not None
    assert (np.diff(hard.last.strata[hard.last.order]) <= 0).all()
    assert (np.diff(easy.last.strata[easy.last.order]) >= 0).all()
    assert sum(hard.last.kept_per_stratum) == 5
    assert hard.last.kept_per_stratum == easy.last.kept_per_stratum


def test_the_running_moment_changes_what_is_chosen_next() -> None:
    model, batch = tiny_model("llama", tie_word_embeddings=False), make_batch(EIGHT)
    blind, learning = OptBatch(prune=0.5, strata=1), OptBatch(prune=0.5, strata=1)
    for _ in range(2):
        blind(model, batch)
        learning(model, batch)
        model(**take(batch, learning.last.indices)).loss.backward()  # type: ignore[union-attr]
        learning.observe(model)
        model.zero_grad()
    assert blind.last.order.tolist() != learning.last.order.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", list(BATCH_SELECTORS))
def test_nothing_is_left_out_at_prune_0_and_the_model_is_not_run(name: str) -> None:
    selector = batch_selection(name, prune=0)
    batch = {**make_batch(EIGHT), "example_ids": torch.arange(8)}
    model = tiny_model("llama")
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model was run"))
    assert selector(model, batch).tolist() == list(range(8))
    selector.observe(model)


class Noisy(nn.Module):
    """A layer with dropout and BatchNorm, put before the head of a Llama."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.drop, self.norm = layer, nn.Dropout(0.5), nn.BatchNorm1d(32)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.norm(self.drop(self.layer(hidden)).transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("settings", [{}, {"counts": "drawn"}, {"exit_layer": 1}, {"score_dtype": "bfloat16"}])
def test_choosing_leaves_no_trace_in_training(settings: dict[str, Any]) -> None:
    model, batch = tiny_model("llama", attention_dropout=0.3), make_batch(EIGHT)
    model.model.norm = Noisy(model.model.norm)
    model.train()
    model.model.layers[0].eval()  # a part that the user keeps in evaluation mode
    modes = {name: module.training for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    OptBatch(prune=0.5, **settings)(model, batch)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.model.layers[0]._forward_hooks
    assert not model.lm_head._forward_pre_hooks


def test_gradients_in_autocast_are_there_after_a_choice_in_autocast() -> None:
    model, batch = tiny_model("llama", tie_word_embeddings=False).train(), make_batch(EIGHT)

    def gradient(choose: bool) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if choose:
                OptBatch(prune=0.5)(model, batch)
            model(**batch).loss.backward()
        return model.model.layers[0].mlp.up_proj.weight.grad.clone()

    assert torch.equal(gradient(choose=True), gradient(choose=False))


def test_a_candidate_with_nan_loss_is_never_kept(capsys: pytest.CaptureFixture[str]) -> None:
    model, batch = tiny_model("llama", tie_word_embeddings=False), make_batch(EIGHT)
    batch["input_ids"][batch["input_ids"] == 500] = 499
    batch["input_ids"][3, 2] = 500
    with torch.no_grad():
        model.model.embed_tokens.weight[500] = torch.nan
    for selector in (OptBatch(prune=0.25), HardestBatch(prune=0.25)):
        for _ in range(2):
            keep = selector(model, batch)
            assert 3 not in keep.tolist()
            assert len(keep) == 6
            assert selector.last.dropped == 1  # type: ignore[union-attr]
        assert " ".join(capsys.readouterr().err.split()).count("1 of 8 candidates of batch 1") == 1


@pytest.mark.parametrize("name", ["optbatch", "hardest"])
def test_a_diverged_training_is_an_error(name: str) -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(SelectionError, match=r"every candidate of batch 1 that has a label is NaN.*learning rate"):
        batch_selection(name, prune=0.5)(model, make_batch())


@pytest.mark.parametrize("name", ["optbatch", "hardest"])
def test_a_diverged_candidate_is_not_kept_beside_others_without_labels(name: str) -> None:
    model, batch = tiny_model("llama", tie_word_embeddings=False), make_batch(EIGHT)
    batch["labels"][5:] = -100
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(SelectionError, match="that has a label"):
        batch_selection(name, prune=0.5)(model, batch)


@pytest.mark.parametrize("name", ["optbatch", "hardest"])
def test_candidates_without_labels_are_kept_only_if_there_are_no_others(name: str) -> None:
    model, batch = tiny_model("llama"), make_batch(EIGHT)
    batch["labels"][2:] = -100
    assert batch_selection(name, prune=0.5)(model, batch).tolist() == [0, 1]
    batch["labels"][:] = -100
    assert batch_selection(name, prune=0.5)(model, batch).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["optbatch", "hardest", "random"])
def test_small_batches(name: str) -> None:
    model = tiny_model("llama")
    assert batch_selection(name, prune=0.9)(model, make_batch((12,))).tolist() == [0]
    assert len(batch_selection(name, prune=0.9)(model, make_batch((12, 20)))) == 1
    assert len(OptBatch(prune=0.5, strata=50)(model, make_batch())) == 2


def test_packed_batches_are_refused_with_the_reason() -> None:
    batch = make_batch()
    positions = torch.arange(24).repeat(4, 1)
    assert len(OptBatch(prune=0.5)(tiny_model("llama"), {**batch, "position_ids": positions})) == 2
    packed = positions.clone()
    packed[1, 12:] -= 12
    with pytest.raises(SelectionError, match=r"packed \(its position_ids start again.*Turn packing"):
        OptBatch(prune=0.5)(tiny_model("llama"), {**batch, "position_ids": packed})
    with pytest.raises(SelectionError, match="cu_seq_lens_q"):
        RandomBatch(prune=0.5)(tiny_model("llama"), {**batch, "cu_seq_lens_q": torch.tensor([0, 4])})


def test_positions_of_left_padding_are_not_packing() -> None:
    batch = make_batch(padding="left")
    positions = (batch["attention_mask"].cumsum(1) - 1).masked_fill(batch["attention_mask"] == 0, 1)
    assert len(OptBatch(prune=0.5)(tiny_model("llama"), {**batch, "position_ids": positions})) == 2


def test_what_is_no_batch_is_named() -> None:
    with pytest.raises(DataError, match=r"input_ids and labels of one shape.*'input_ids': \(4, 24\)"):
        OptBatch(prune=0.5)(tiny_model("llama"), {"input_ids": make_batch()["input_ids"]})
    with pytest.raises(DataError, match=r"pixel_values has shape \(7, 3\)"):
        RandomBatch(prune=0.5)(tiny_model("llama"), {**make_batch(), "pixel_values": torch.zeros(7, 3)})


def test_the_kept_part_loses_padding_that_is_padding_in_all_of_it() -> None:
    batch = {**make_batch((24, 9, 12, 24)), "note": "kept as it is", "scale": torch.tensor(2.0)}
    part = take(batch, np.array([1, 2]))
    assert part["input_ids"].shape == part["labels"].shape == part["attention_mask"].shape == (2, 12)
    assert torch.equal(part["input_ids"], batch["input_ids"][1:3, :12])
    assert part["note"] == "kept as it is"
    assert take(make_batch((24, 9), "left"), np.array([1]))["input_ids"].shape == (1, 24)


def test_the_hardest_are_the_highest_losses() -> None:
    model, batch = tiny_model("llama"), make_batch(EIGHT)
    losses = np.array([materialised(model, batch, i)[0] for i in range(8)])
    assert HardestBatch(prune=0.5)(model, batch).tolist() == sorted(np.argsort(-losses)[:4].tolist())


def test_random_differs_by_call_and_seed_and_repeats() -> None:
    model, batch = tiny_model("llama"), make_batch(EIGHT)
    first, again, other = RandomBatch(prune=0.5), RandomBatch(prune=0.5), RandomBatch(prune=0.5, seed=1)
    draws = [first(model, batch).tolist() for _ in range(4)]
    assert draws == [again(model, batch).tolist() for _ in range(4)]
    assert draws != [other(model, batch).tolist() for _ in range(4)]
    assert len({tuple(draw) for draw in draws}) > 1


def test_infobatch_leaves_out_only_what_is_easy_and_keeps_the_mean_gradient() -> None:
    selector, model = InfoBatch(prune=0.6, anneal=0), tiny_model("llama")
    batch = {**make_batch(EIGHT), "example_ids": torch.arange(8) + 100}
    assert selector(model, batch).tolist() == list(range(8))  # at the first visit nothing is known
    losses = np.array([1, 9, 1, 9, 1, 9, np.nan, 1.0])
    selector.remember(batch["example_ids"], losses)
    total, kept_easy = np.zeros(8), 0
    for _ in range(3000):
        selector(model, batch)
        assert selector.last is not None
        total[selector.last.indices] += selector.last.weights
        assert {1, 3, 5, 6} <= set(selector.last.indices.tolist())
        kept_easy += len(selector.last.indices) - 4
    assert kept_easy / 3000 == pytest.approx(4 * 0.4, rel=0.05)
    np.testing.assert_allclose(total / 3000, 1.0, atol=0.1)


@pytest.mark.parametrize(("size", "prune"), [(1, 0.9), (2, 0.5), (4, 0.9)])
def test_infobatch_keeps_the_mean_gradient_where_all_are_easy_and_one_must_stay(size: int, prune: float) -> None:
    selector, model = InfoBatch(prune=prune, anneal=0), tiny_model("llama")
    selector.remember(np.arange(9), np.array([1.0] * 8 + [100.0]))
    batch = {**make_batch(EIGHT[:size]), "example_ids": torch.arange(size)}
    total = np.zeros(size)
    for _ in range(4000):
        selector(model, batch)
        assert selector.last is not None
        total[selector.last.indices] += selector.last.weights
    np.testing.assert_allclose(total / 4000, 1.0, atol=0.1)


def test_infobatch_uses_all_in_the_last_part_of_the_training() -> None:
    selector, model = InfoBatch(prune=0.9, anneal=0.25), tiny_model("llama")
    batch = {**make_batch(EIGHT), "example_ids": torch.arange(8)}
    selector.remember(batch["example_ids"], np.arange(8.0))
    selector.at(74, 100)
    assert len(selector(model, batch)) < 8
    selector.at(75, 100)
    assert len(selector(model, batch)) == 8
    with pytest.raises(SettingsError, match="needs total_steps"):
        InfoBatch(prune=0.9)(model, batch)


def test_a_model_that_was_trained_in_mixed_precision_can_be_chosen_for_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    model, batch = tiny_model("llama"), make_batch(EIGHT)
    rows = [{name: value[row] for name, value in batch.items()} for row in range(len(EIGHT))]
    options = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, bf16=True, use_cpu=True, report_to=[]
    )
    Trainer(model, options, train_dataset=rows).train()
    assert len(OptBatch(prune=0.5)(model, batch)) == 4
