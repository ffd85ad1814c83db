"""Extraction over a pool: the same rows give the same features however it is cut, and what is damaged is made again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from pursuit.batches import plan_batches
from pursuit.errors import DataError, ModelError, StoreError
from pursuit.gradients import AdamState, precondition, trainable_parameters
from pursuit.gradients import extract as module
from pursuit.gradients.extract import extract
from pursuit.recipes import Recipe
from pursuit.store.features import FeatureStore
from test_gradients import one_at_a_time, with_lora
from tiny import tiny_model


class Rows:
    """A pool of random rows in memory."""

    def __init__(self, lengths, seed=0):
        generator = np.random.default_rng(seed)
        self.lengths = np.asarray(lengths, dtype=np.int32)
        self.examples = []
        for length in lengths:
            response = generator.random(length) < 0.5
            response[-1] = True
            self.examples.append((generator.integers(3, 500, length, dtype=np.int32), response))
        self.rows = pa.table({"path": ["pool.jsonl"] * len(lengths), "line": np.arange(1, len(lengths) + 1)})

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return self.examples[index]


class TwoCheckpoints:
    """Random weights and moments at two points of a trajectory."""

    def __init__(self, model):
        self.points = []
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            draw = lambda p, scale: torch.randn(p.shape, generator=generator) * scale  # noqa: B023, E731
            parameters = trainable_parameters(model)
            weights = {name: draw(p, 0.1) for name, p in parameters.items()}
            average = {name: draw(p, 1e-3) for name, p in parameters.items()}
            square = {name: draw(p, 1e-3).square() for name, p in parameters.items()}
            self.points.append((weights, AdamState(average, square, 10 * seed)))

    def __len__(self):
        return 2

    def weights(self):
        return [0.75, 0.25]

    def load_into(self, model, number):
        with torch.no_grad():
            for name, p in trainable_parameters(model).items():
                p.copy_(self.points[number][0][name])

    def moments(self, number):
        return self.points[number][1]


LENGTHS = [5, 9, 17, 3, 12, 8, 8, 21, 6, 14, 2]
EXACT = Recipe(dimension=64, projection="none", dtype="float32", batch_tokens=40, shard_rows=4)


@pytest.fixture(scope="module")
def model():
    return with_lora("llama")


@pytest.fixture(scope="module")
def checkpoints(model):
    return TwoCheckpoints(model)


def run(model, checkpoints, folder, recipe, rows=None, **options):
    return extract(model, checkpoints, rows or Rows(LENGTHS), folder, recipe, provenance={"model": "tiny"}, **options)


def features_of(store):
    return store.features(pa.table({"source": ["pool"] * store.num_rows}))


@pytest.mark.parametrize(
    ("kind", "momentum"), [("sgd", False), ("sign", False), ("less", True), ("adam", True), ("adam", False)]
)
def test_features_are_the_unit_preconditioned_gradients(model, checkpoints, tmp_path, kind, momentum):
    """Against plain autograd, one example at a time, and the formula over the flat gradient."""
    found = features_of(run(model, checkpoints, tmp_path, replace(EXACT, preconditioner=kind, momentum=momentum)))
    rows = Rows(LENGTHS)
    for number in range(2):
        checkpoints.load_into(model, number)
        examples = [
            (torch.tensor(ids).long(), torch.tensor(np.where(response, ids, -100)).long())
            for ids, response in rows.examples
        ]
        gradients = one_at_a_time(model, examples)
        state = checkpoints.moments(number)
        flat = AdamState(
            {"all": torch.cat([state.exp_avg[n].flatten() for n in sorted(state.exp_avg)])},
            {"all": torch.cat([state.exp_avg_sq[n].flatten() for n in sorted(state.exp_avg)])}, state.step,
        )  # fmt: skip
        expected = precondition(gradients, kind, "all", flat, momentum)
        expected = expected / expected.norm(dim=1, keepdim=True)
        got = torch.from_numpy(found.checkpoint(number)[:])
        if kind == "sign":  # of a gradient that is zero but for rounding the sign is anything
            clear = gradients.abs() > 1e-5 * gradients.abs().amax(dim=1, keepdim=True)
            got, expected = got.sign().where(clear, 0.0), expected.sign().where(clear, 0.0)
        assert (got - expected).norm(dim=1).max() < 1e-4
        np.testing.assert_allclose(found.gradient_norms[number], gradients.norm(dim=1), rtol=1e-4)


@settings(max_examples=12)
@given(batch_tokens=st.integers(1, 200), shard_rows=st.integers(1, 12))
def test_batches_and_shards_change_only_rounding(model, checkpoints, tmp_path_factory, batch_tokens, shard_rows):
    recipe = replace(EXACT, projection="sparse", batch_tokens=batch_tokens, shard_rows=shard_rows)
    whole = features_of(run(model, checkpoints, tmp_path_factory.mktemp("a"), replace(EXACT, projection="sparse")))
    cut = features_of(run(model, checkpoints, tmp_path_factory.mktemp("b"), recipe))  # Adam magnifies rounding
    for number in range(2):
        np.testing.assert_allclose(whole.checkpoint(number)[:], cut.checkpoint(number)[:], atol=1e-4)


def shard_bytes(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def test_shards_made_apart_in_any_order_are_the_same_bits(model, checkpoints, tmp_path):
    recipe = replace(EXACT, projection="sparse")
    run(model, checkpoints, tmp_path / "whole", recipe)
    for shard in (2, 0, 1):
        run(model, checkpoints, tmp_path / "apart", recipe, shards=[shard])
    assert shard_bytes(tmp_path / "whole") == shard_bytes(tmp_path / "apart")


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_shard_is_found_and_made_again(model, checkpoints, tmp_path, damage):
    store = run(model, checkpoints, tmp_path, EXACT)
    before = shard_bytes(tmp_path)
    path = store.shard_path(1, 2)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-7])
    else:
        path.unlink()
    with pytest.raises(StoreError, match=r"00002\.safetensors"):
        features_of(FeatureStore(tmp_path))
    run(model, checkpoints, tmp_path, EXACT)
    assert shard_bytes(tmp_path) == before


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"preconditioner": "sgd"}, {"projection": "sparse"}, {"dtype": "float16"}, {"momentum": True}],
)
def test_a_store_made_otherwise_is_refused_by_name(model, checkpoints, tmp_path, change):
    run(model, checkpoints, tmp_path, EXACT)
    with pytest.raises(StoreError, match=next(iter(change))):
        run(model, checkpoints, tmp_path, replace(EXACT, **change))
    with pytest.raises(StoreError, match="model"):
        extract(model, checkpoints, Rows(LENGTHS), tmp_path, EXACT, provenance={"model": "another"})


def test_out_of_memory_halves_the_batch_and_goes_on(model, checkpoints, tmp_path, monkeypatch):
    plain = features_of(run(model, checkpoints, tmp_path / "plain", EXACT))
    real, sizes = module.batch_features, []

    def small_machine(model, encoded, rows, *rest):
        sizes.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("too big")
        return real(model, encoded, rows, *rest)

    monkeypatch.setattr(module, "batch_features", small_machine)
    found = features_of(run(model, checkpoints, tmp_path / "small", EXACT))
    assert max(sizes) > 1
    np.testing.assert_allclose(found.checkpoint(1)[:], plain.checkpoint(1)[:], atol=2e-5)
    monkeypatch.setattr(module, "batch_features", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(DataError, match=r"pool\.jsonl, line \d+: .*max-length"):
        run(model, checkpoints, tmp_path / "none", EXACT)


def test_a_bf16_model_with_float32_adapters(checkpoints, tmp_path):
    """As loaded by peft: close to float32, and unit rows."""
    plain = replace(EXACT, preconditioner="sgd")  # Adam divides by small moments and so magnifies rounding
    exact = features_of(run(with_lora("llama"), checkpoints, tmp_path / "fp32", plain))
    model = with_lora("llama").to(torch.bfloat16)
    for parameter in trainable_parameters(model).values():
        parameter.data = parameter.data.float()
    found = features_of(run(model, checkpoints, tmp_path / "bf16", plain))
    for number in range(2):
        cosine = (found.checkpoint(number)[:] * exact.checkpoint(number)[:]).sum(axis=1)
        assert cosine.min() > 0.99
        assert cosine.max() < 1.001


def test_positions_stay_in_float32_in_a_bf16_model(checkpoints, tmp_path):
    """As transformers loads it: parameters in bfloat16, the rotary frequencies in float32."""
    lengths = [200, 180, 220]
    plain = replace(EXACT, preconditioner="sgd")
    exact = features_of(run(with_lora("llama"), checkpoints, tmp_path / "fp32", plain, Rows(lengths)))
    model = with_lora("llama")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16 if not parameter.requires_grad else torch.float32)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = features_of(run(model, checkpoints, tmp_path / "bf16", plain, Rows(lengths)))
    assert any("inv_freq" in name for name in buffers)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
        assert buffer.dtype == buffers[name].dtype
    cosine = (found.checkpoint(1)[:] * exact.checkpoint(1)[:]).sum(axis=1)
    assert cosine.min() > 0.99


def test_a_row_that_is_not_finite_is_named(model, checkpoints, tmp_path):
    class Broken(TwoCheckpoints):
        def load_into(self, model, number):
            super().load_into(model, number)
            with torch.no_grad():
                model.get_base_model().model.embed_tokens.weight[499] = torch.inf

    rows = Rows(LENGTHS)
    rows.examples[4][0][3] = 499
    try:
        with pytest.raises(DataError, match=r"pool\.jsonl, line 5: .*not finite"):
            run(model, Broken(model), tmp_path, EXACT, rows)
    finally:
        with torch.no_grad():
            model.get_base_model().model.embed_tokens.weight[499] = 0.1


class UsedTwice(torch.nn.Module):
    """A layer whose weight is also used outside of the layer, where no hook sees it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + torch.nn.functional.linear(x, self.layer.weight)


@pytest.mark.parametrize("projection", ["none", "factored", "tensorsketch"])
def test_weights_used_behind_the_hooks_are_noticed(tmp_path, projection):
    model = tiny_model("llama").requires_grad_(False)
    attention = model.model.layers[0].self_attn
    attention.q_proj = UsedTwice(attention.q_proj)
    attention.q_proj.layer.weight.requires_grad_(True)
    with pytest.raises(ModelError, match=r"differ from this model's own by \d"):
        run(model, TwoCheckpoints(model), tmp_path, replace(EXACT, projection=projection, preconditioner="sgd"))


def test_trained_weights_that_no_hook_reaches_are_named(tmp_path):
    """peft trains some rows of the input embeddings beside the adapters; a tenth of the gradient would be zero."""
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], trainable_token_indices=[5, 6, 7])
    model = get_peft_model(tiny_model("llama"), config)
    rows = Rows(LENGTHS)
    for ids, _ in rows.examples:
        ids[1] = 5
    with pytest.raises(ModelError, match=r"trainable_tokens_delta: .*hooks do not see"):
        module.check_gradients(model, rows)


@pytest.mark.parametrize(("lengths", "rows"), [
    ([2, 30, 9, 1, 8, 40], [4, 2]),  # the shortest of those with eight tokens: one or two have no gradient to compare
    ([3, 5, 2, 5], [1, 3]),
    ([6], [0]),
])  # fmt: skip
def test_the_comparison_with_autograd_looks_at_rows_that_have_a_gradient(lengths, rows):
    assert module._telling_rows(np.asarray(lengths, dtype=np.int32)) == rows


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(1, 120))
def test_batches_hold_every_row_once_within_the_budget(lengths, budget):
    lengths = np.asarray(lengths, dtype=np.int32)
    batches = plan_batches(range(len(lengths)), lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
        assert list(lengths[batch]) == sorted(lengths[batch], reverse=True)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), budget=st.integers(1, 120))
def test_no_other_way_to_cut_the_rows_costs_less(lengths, budget):
    """Of all 2ⁿ⁻¹ ways."""
    falling = sorted(lengths, reverse=True)

    def cost(sizes):
        ends = np.cumsum(sizes)
        padded = [size * falling[end - size] for size, end in zip(sizes, ends, strict=True)]
        fits = all(size == 1 or tokens <= budget for size, tokens in zip(sizes, padded, strict=True))
        return sum(padded) + len(sizes) * (budget // 8) if fits else np.inf

    def ways(rows):
        yield (rows,)
        yield from ((first, *rest) for first in range(1, rows) for rest in ways(rows - first))

    batches = plan_batches(range(len(lengths)), np.asarray(lengths, dtype=np.int32), budget)
    assert cost([len(batch) for batch in batches]) == min(map(cost, ways(len(lengths))))
