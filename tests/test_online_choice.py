"""Strata, counts and farthest points; and what a selector promises to any PyTorch loop."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from online_batches import EIGHT, make_batch, materialised
from pursuit.errors import DataError, SelectionError, SettingsError, StoreError
from pursuit.online import (
    BATCH_SELECTORS,
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
from pursuit.online.spread import spread_over
from pursuit.online.strata import clipped, drawn_counts, expected_counts, make_strata
from pursuit.solvers.farthest_point import farthest_point
from tiny import tiny_model

losses_of_a_batch = st.lists(st.floats(0, 900, allow_subnormal=False), min_size=1, max_size=40).map(np.array)


def textbook(features: np.ndarray, strata: np.ndarray, plan: list[tuple[int, int]]) -> list[int]:
    """Farthest point by its definition, one distance at a time."""
    chosen: list[int] = []
    for stratum, count in plan:
        for _ in range(count):
            best, far = -1, -1.0
            for row in np.flatnonzero(strata == stratum):
                if row in chosen:
                    continue
                distances = [float(np.linalg.norm(features[row] - features[other])) for other in chosen]
                distance = min(distances) if chosen else float(np.linalg.norm(features[row]))
                if distance > far:
                    best, far = int(row), distance
            chosen.append(best)
    return chosen


@given(losses_of_a_batch, st.integers(1, 9), st.sampled_from(["quantile", "width"]), st.data())
def test_counts_sum_to_n_and_fit_their_strata(losses: np.ndarray, count: int, cut: Any, data: Any) -> None:
    budget = data.draw(st.integers(0, len(losses)))
    strata = make_strata(losses, count, cut)
    sizes = np.bincount(strata)
    for counts in (
        expected_counts(losses, strata, budget), drawn_counts(losses, strata, budget, np.random.default_rng(0))
    ):  # fmt: skip
        assert counts.sum() == budget
        assert len(counts) == len(sizes)
        assert (counts >= 0).all()
        assert (counts <= sizes).all()


@given(losses_of_a_batch, st.integers(1, 9))
def test_quantile_strata_differ_by_one_in_size_and_are_ordered_by_loss(losses: np.ndarray, count: int) -> None:
    strata = make_strata(losses, count, "quantile")
    sizes = np.bincount(strata)
    assert len(sizes) == min(count, len(losses))
    assert sizes.max() - sizes.min() <= 1
    for easier, harder in zip(range(len(sizes)), range(1, len(sizes)), strict=False):
        assert losses[strata == easier].max() <= losses[strata == harder].min()


def test_strata_of_equal_width_may_be_empty() -> None:
    assert make_strata(np.array([0.0, 0.1, 3.0]), 3, "width").tolist() == [0, 0, 2]
    assert make_strata(np.array([2.0, 2.0]), 3, "width").tolist() == [0, 0]


def test_expected_counts_are_those_of_many_draws() -> None:
    losses = np.array([0.1, 0.4, 0.8, 1.2, 1.3, 2.0, 2.1, 2.2, 0.2])
    strata = make_strata(losses, 3, "quantile")
    odds = np.exp(losses) / np.exp(losses).sum()
    draws = np.random.default_rng(0).choice(strata, size=40_000, p=odds)  # with replacement: n draws and count
    shares = np.bincount(draws) / len(draws)
    counts = expected_counts(losses, strata, 4)
    assert np.abs(counts - 4 * shares).max() < 1
    assert counts.tolist() == [0, 1, 3]


def test_what_a_stratum_is_too_small_for_goes_to_the_next_in_proportion() -> None:
    losses = np.array([0.0, 0.0, 1.0, 1.0, 40.0, 40.0])
    strata = make_strata(losses, 3, "quantile")
    assert expected_counts(losses, strata, 4).tolist() == [1, 1, 2]
    assert expected_counts(losses, strata, 5).tolist() == [1, 2, 2]


def test_a_draw_is_without_replacement_and_favours_high_losses() -> None:
    losses = np.array([0.0] * 6 + [2.0] * 6)
    strata = make_strata(losses, 2, "quantile")
    draws = [drawn_counts(losses, strata, 4, np.random.default_rng(seed)) for seed in range(200)]
    assert len({tuple(draw) for draw in draws}) > 1
    assert np.mean(draws, axis=0)[1] > 3


@given(st.integers(1, 25), st.integers(1, 5), st.integers(1, 6), st.integers(0, 30), st.data())
def test_the_choice_is_the_textbooks(rows: int, width: int, count: int, seed: int, data: Any) -> None:
    generator = np.random.default_rng(seed)
    features, losses = generator.normal(size=(rows, width)), generator.random(rows)
    budget = data.draw(st.integers(1, rows))
    strata = make_strata(losses, count, "quantile")
    plan = list(enumerate(expected_counts(losses, strata, budget).tolist()))[::-1]
    found = spread_over(features, strata, plan)
    assert found.indices.tolist() == textbook(features, strata, plan)
    chosen = features[found.indices]
    for place in range(1, budget):
        nearest = np.linalg.norm(chosen[:place] - chosen[place], axis=1).min()
        assert found.distances[place] == pytest.approx(nearest, abs=1e-6)


@given(st.integers(1, 30), st.integers(0, 30), st.data())
def test_one_stratum_is_plain_farthest_point(rows: int, seed: int, data: Any) -> None:
    features = np.random.default_rng(seed).normal(size=(rows, 4))
    budget = data.draw(st.integers(1, rows))
    found = spread_over(features, np.zeros(rows, dtype=np.int64), [(0, budget)])
    indices, distances = farthest_point(features, budget)
    assert found.indices.tolist() == indices.tolist()
    np.testing.assert_allclose(found.distances, distances)


def test_equal_examples_are_chosen_by_index_and_last() -> None:
    features = np.array([[1.0, 0], [1, 0], [0, 1], [1, 0]])
    assert spread_over(features, np.zeros(4, dtype=np.int64), [(0, 4)]).indices.tolist() == [0, 2, 1, 3]


def test_cosine_distance_does_not_see_length() -> None:
    features = np.array([[3.0, 0], [0, 1], [9, 1], [0, 0]])
    strata = np.zeros(4, dtype=np.int64)
    longest_first = spread_over(features, strata, [(0, 2)], "cosine").indices.tolist()
    assert longest_first == [2, 1]
    assert spread_over(features, strata, [(0, 2)], "l2").indices.tolist() == [2, 3]


def test_clipping_bounds_what_one_outlier_takes() -> None:
    losses = np.concatenate([np.linspace(1, 2, 99), [60.0]])
    bounded = clipped(losses, 0.99)
    assert bounded.max() < 5
    np.testing.assert_array_equal(bounded[:99], losses[:99])


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
    with pytest.raises(SelectionError, match=r"every candidate of batch 1 is NaN or infinite.*learning rate"):
        batch_selection(name, prune=0.5)(model, make_batch())


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


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("optbach", {}, "no batch selection 'optbach'. Did you mean 'optbatch'"),
        ("optbatch", {"prun": 0.3}, "no setting 'prun'. Did you mean 'prune'"),
        ("optbatch", {"prune": 1.0}, "prune=1.0 cannot be used. It must be a number, at least 0 and below 1"),
        ("optbatch", {"strata": 0}, "strata=0 cannot be used. It must be a whole number, at least 1"),
        ("optbatch", {"feature": "hessian"}, '"second_moment" or "grad_norm" or "embedding"'),
        ("optbatch", {"schedule": "sometimes"}, "schedule='sometimes' cannot be used"),
        ("full", {"prune": 0.3}, "full: prune=0.3 cannot be used"),
    ],
)
def test_wrong_settings_are_named_with_what_would_be_right(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as error:
        batch_selection(name, **settings)
    assert message in str(error.value)


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
