from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from pursuit.batches import IGNORED, collate, plan_batches
from pursuit.errors import DataError, ModelError, StoreError
from pursuit.models.loading import Lora, prepare_trainable, trainable_parameters
from pursuit.warmup import Plan, WarmUp, warm_up
from pursuit.warmup.trajectory import WEIGHTS, Trajectory
from tiny import CONFIGS, tiny_model

PLAIN = Lora(rank=4, alpha=16, dropout=0.0)


class Rows:
    """Random token rows whose second half is the response."""

    def __init__(self, count: int, *, lengths: Sequence[int] | None = None, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.lengths = np.array(lengths if lengths is not None else generator.integers(4, 40, count))
        self.tokens = [generator.integers(3, 512, length).astype(np.int32) for length in self.lengths]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        tokens = self.tokens[row]
        return tokens, np.arange(len(tokens)) >= len(tokens) // 2


def adapted(kind: str = "llama", lora: Lora = PLAIN) -> torch.nn.Module:
    return prepare_trainable(tiny_model(kind), lora=lora)


def short(**changes: object) -> WarmUp:
    return WarmUp(**{"checkpoint_steps": (1, 3), "batch_size": 8, "learning_rate": 1e-2} | changes)  # type: ignore[arg-type]


# --- it trains


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_learns_and_leaves_its_checkpoints(kind: str, tmp_path: Path) -> None:
    model = adapted(kind, Lora(rank=4, alpha=16))
    rows = Rows(8)
    trajectory = warm_up(model, rows, tmp_path, short(checkpoint_steps=(2, 8), sample=1.0, schedule="constant"))
    first, last = trajectory.checkpoints
    assert (first.step, last.step, len(trajectory)) == (2, 8, 2)
    assert last.losses[-1] < first.losses[0]  # the same eight rows at every step
    assert first.examples_seen == 16
    moments, parameters = trajectory.moments(1), trainable_parameters(model)
    assert moments.exp_avg.keys() == moments.exp_avg_sq.keys() == parameters.keys()
    assert all(bool((moment > 0).any()) for moment in moments.exp_avg_sq.values())
    assert (moments.step, moments.betas, moments.eps) == (8, (0.9, 0.999), 1e-8)


def test_a_bfloat16_model_trains_its_adapter_in_float32(tmp_path: Path) -> None:
    model = prepare_trainable(tiny_model("llama").to(torch.bfloat16), lora=PLAIN)
    trajectory = warm_up(model, Rows(20), tmp_path, short())
    assert {tensor.dtype for tensor in trajectory.moments(1).exp_avg.values()} == {torch.float32}


def test_float16_without_a_scaled_loss_is_refused(tmp_path: Path) -> None:
    model = prepare_trainable(tiny_model("llama").to(torch.float16), lora=PLAIN)
    with pytest.raises(ModelError, match="--dtype bfloat16"):
        warm_up(model, Rows(20), tmp_path, short())


def test_small_steps_of_bfloat16_weights_are_not_lost(tmp_path: Path) -> None:
    """A rate of 2e-5 is less than bfloat16 can tell of most weights: they are trained, and kept, in float32."""
    model = prepare_trainable(tiny_model("llama").to(torch.bfloat16), weights=["*q_proj*"])
    first = {name: p.detach().float().clone() for name, p in trainable_parameters(model).items()}
    trajectory = warm_up(model, Rows(20), tmp_path, short(learning_rate=2e-5, checkpoint_steps=(4,)))
    kept = trajectory.checkpoints[0].tensors(WEIGHTS)
    for name, weights in first.items():
        assert kept[name].dtype == trajectory.moments(0).exp_avg[name].dtype == torch.float32
        assert (kept[name] != weights).float().mean() > 0.99
    assert {p.dtype for p in trainable_parameters(model).values()} == {torch.bfloat16}  # afterwards as it was


def test_named_weights_of_the_model_itself_can_be_warmed_up(tmp_path: Path) -> None:
    model = prepare_trainable(tiny_model("gpt2"), weights=["transformer.h.1.attn.*"])
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    trajectory = warm_up(model, Rows(20), tmp_path, short())
    assert sorted(trajectory.moments(0).exp_avg) == [
        "transformer.h.1.attn.c_attn.bias", "transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_proj.bias",
        "transformer.h.1.attn.c_proj.weight",
    ]  # fmt: skip
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def plain_adamw(
    model: torch.nn.Module, rows: Rows, settings: WarmUp, rates: Sequence[float]
) -> tuple[torch.optim.AdamW, list[float]]:
    """The same training written out: one unpadded example at a time, torch's AdamW, no Trainer."""
    plan, parameters = Plan(settings, len(rows)), list(trainable_parameters(model).values())
    optimizer = torch.optim.AdamW(parameters, betas=settings.betas, eps=settings.eps, weight_decay=0)
    losses = []
    for step, rate in enumerate(rates):
        optimizer.zero_grad()
        batch = [rows[int(row)] for row in plan.batch(step)]
        count = sum(int(response[1:].sum()) for _, response in batch)
        total = torch.zeros(())
        for tokens, response in batch:
            ids = torch.from_numpy(tokens.astype(np.int64))
            logits = model(input_ids=ids[None]).logits[0, :-1]
            learnt = torch.from_numpy(response[1:])
            total = total + cross_entropy(logits[learnt], ids[1:][learnt], reduction="sum") / count
        total.backward()
        losses.append(total.item())
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return optimizer, losses


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
def test_weights_and_moments_equal_a_plain_training_loop(kind: str, tmp_path: Path) -> None:
    overrides = {"opt": {"dropout": 0.0}, "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}}
    settings, rows = short(sample=20, epochs=2, max_grad_norm=0.5, betas=(0.8, 0.99), micro_batch_tokens=64), Rows(30)
    models = [prepare_trainable(tiny_model(kind, **overrides.get(kind, {})), lora=PLAIN) for _ in range(2)]
    trajectory = warm_up(models[0], rows, tmp_path, settings)
    # 20 rows in batches of 8 are 3 steps an epoch, 6 in all; the rate rises over ceil(0.03 × 6) = 1 step, from 0
    optimizer, losses = plain_adamw(models[1], rows, settings, rates=[0.0, 1e-2, 1e-2 * 4 / 5])
    moments = trajectory.moments(1)
    for name, parameter in trainable_parameters(models[1]).items():
        state = optimizer.state[parameter]
        scale = 1e-4 * float(state["exp_avg"].abs().max())
        assert torch.allclose(moments.exp_avg[name], state["exp_avg"], rtol=1e-3, atol=scale)
        assert torch.allclose(moments.exp_avg_sq[name], state["exp_avg_sq"], rtol=2e-3, atol=scale**2)
        assert torch.allclose(trainable_parameters(models[0])[name], parameter, rtol=1e-3, atol=1e-5)
    recorded = [loss for checkpoint in trajectory.checkpoints for loss in checkpoint.losses]
    assert np.allclose(recorded, losses, rtol=1e-5)


def test_mean_learning_rates_are_those_of_the_steps_between_checkpoints(tmp_path: Path) -> None:
    settings = short(checkpoint_steps=(2, 4, 5), sample=16, epochs=10, warmup_ratio=0.1, learning_rate=0.9)
    trajectory = warm_up(adapted(), Rows(16), tmp_path, settings)
    # two steps an epoch, 20 planned: up over 2 steps (0, 1/2 of the rate), then down over 18 (18/18, 17/18, 16/18, ...)
    rates = [(0 + 0.45) / 2, (0.90 + 0.85) / 2, 0.80]
    assert np.allclose([checkpoint.mean_learning_rate for checkpoint in trajectory.checkpoints], rates)
    assert np.allclose(trajectory.weights(), np.array(rates) / sum(rates))


def test_equal_weights_when_no_step_had_a_learning_rate(tmp_path: Path) -> None:
    trajectory = warm_up(adapted(), Rows(16), tmp_path, short(checkpoint_steps=(1,), sample=16))
    assert trajectory.checkpoints[0].mean_learning_rate == 0
    assert trajectory.weights().tolist() == [1.0]


# --- what a step trains on


@given(st.integers(1, 60), st.integers(1, 12), st.one_of(st.integers(1, 80), st.floats(0.01, 1.0)), st.integers(0, 3))
def test_each_epoch_trains_once_on_every_sampled_row(count: int, batch: int, sample: float, seed: int) -> None:
    plan = Plan(short(batch_size=batch, sample=sample, seed=seed, checkpoint_steps=None, epochs=2), count)
    wanted = sample if isinstance(sample, int) else round(sample * count)
    assert len(plan.rows) == min(count, max(wanted, batch))
    assert len(set(plan.rows)) == len(plan.rows)
    assert plan.checkpoint_steps == (plan.steps_per_epoch, 2 * plan.steps_per_epoch)
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        rows = np.concatenate([plan.batch(step) for step in steps])
        assert sorted(rows) == list(plan.rows)
        assert all(len(plan.batch(step)) == batch for step in steps[:-1])
    for steps in (1, plan.last_step // 2, plan.last_step):
        assert plan.examples_seen(steps) == sum(len(plan.batch(step)) for step in range(steps))


def test_the_schedule_spans_the_planned_run_and_grows_by_whole_epochs() -> None:
    early = Plan(short(checkpoint_steps=(2,), sample=40, batch_size=8, epochs=4), 100)
    assert (early.last_step, early.planned_steps) == (2, 20)
    late = Plan(short(checkpoint_steps=(23,), sample=40, batch_size=8, epochs=4), 100)
    assert (late.last_step, late.planned_steps) == (23, 25)


def test_other_seeds_take_other_rows() -> None:
    first, again, other = (Plan(short(sample=0.2, seed=seed), 100) for seed in (0, 0, 1))
    assert np.array_equal(first.rows, again.rows)
    assert np.array_equal(first.batch(1), again.batch(1))
    assert not np.array_equal(first.rows, other.rows)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_token_budget(lengths: list[int], tokens: int) -> None:
    rows = Rows(len(lengths), lengths=lengths)
    found = []
    for part in plan_batches(range(len(lengths)), rows.lengths, tokens):
        batch = collate(rows, part)
        ids, mask, labels = (batch[name] for name in ("input_ids", "attention_mask", "labels"))
        assert ids.numel() <= tokens or len(ids) == 1
        assert bool((labels[mask == 0] == IGNORED).all())
        assert bool(mask.any(dim=0).all())  # no column of padding alone
        for row, length, learnt in zip(ids, mask.sum(dim=1).tolist(), labels, strict=True):
            found.append(row[:length].tolist())
            half = length // 2
            assert learnt[:length].tolist() == [IGNORED] * half + row[half:length].tolist()
    assert sorted(found) == sorted(tokens.tolist() for tokens in rows.tokens)


# --- memory


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_global_batch(tmp_path: Path) -> None:
    sizes: list[int] = []

    def limited(_module: object, arguments: tuple[torch.Tensor, ...]) -> None:
        sizes.append(arguments[0].numel())
        if sizes[-1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    rows, settings = Rows(20), short(sample=1.0)
    free = warm_up(adapted(), rows, tmp_path / "free", settings)
    tight_model = adapted()
    tight_model.get_submodule("base_model.model.model.embed_tokens").register_forward_pre_hook(limited)
    tight = warm_up(tight_model, rows, tmp_path / "tight", settings)
    assert max(sizes) > 100 >= sizes[-1]
    assert tight.checkpoints[-1].micro_batch_tokens <= 100
    assert [c.examples_seen for c in tight.checkpoints] == [c.examples_seen for c in free.checkpoints]
    for name, moment in free.moments(1).exp_avg.items():
        assert torch.allclose(tight.moments(1).exp_avg[name], moment, rtol=1e-3, atol=1e-4 * float(moment.abs().max()))


def test_one_example_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    model = adapted()
    model.get_submodule("base_model.model.lm_head").register_forward_pre_hook(full)
    with pytest.raises(ModelError, match=r"step 1: memory does not suffice for one example of \d+ tokens"):
        warm_up(model, Rows(20), tmp_path, short(sample=1.0))


# --- what goes wrong is said


def test_a_loss_that_is_not_a_number_stops_with_its_step(tmp_path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        model.get_submodule("base_model.model.lm_head").weight[5] = float("nan")
    with pytest.raises(ModelError, match=r"warm-up step 1: the loss \(nan\).*learning rate"):
        warm_up(model, Rows(20), tmp_path, short())


def test_weights_that_overflow_are_never_kept(tmp_path: Path) -> None:
    model = adapted()
    parameter = next(iter(trainable_parameters(model).values()))
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(ModelError, match="warm-up step 1: a weight or moment"):
        warm_up(model, Rows(20), tmp_path, short())
    with pytest.raises(StoreError, match="unfinished"):
        Trajectory(tmp_path)


def test_rows_without_a_response_are_refused_when_a_batch_has_no_other(tmp_path: Path) -> None:
    rows = Rows(4, lengths=[1, 1, 1, 1])
    with pytest.raises(DataError, match="no response token"):
        warm_up(adapted(), rows, tmp_path, short())
    with pytest.raises(DataError, match="no usable rows"):
        warm_up(adapted(), Rows(0), tmp_path, short())


def test_a_row_without_a_response_does_not_spoil_its_batch(tmp_path: Path) -> None:
    rows = Rows(8, lengths=[1, 9, 12, 20, 5, 30, 31, 7])
    trajectory = warm_up(adapted(), rows, tmp_path, short(micro_batch_tokens=1))
    assert np.isfinite(trajectory.checkpoints[-1].loss)


# --- the folder


def test_the_callers_randomness_and_model_mode_are_left_alone(tmp_path: Path) -> None:
    model = adapted()
    model.config.use_cache = True
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    warm_up(model, Rows(20), tmp_path, short())
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert not model.training
    assert model.config.use_cache
    assert all(parameter.grad is None for parameter in model.parameters())
