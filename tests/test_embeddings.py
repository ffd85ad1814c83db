"""Embeddings and base losses over a pool: those of one example at a time, however the pass is cut or interrupted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pursuit.errors import DataError, ModelError, StoreError
from pursuit.gradients import embeddings as module
from pursuit.gradients.embeddings import embed, finished_embeddings, position_weighted_mean
from pursuit.gradients.split import split_model
from pursuit.store.features import FeatureStore
from test_extract import LENGTHS, Rows, shard_bytes
from test_gradients import batch_of, random_examples, with_lora
from tiny import CONFIGS, tiny_model

MADE = {"model": "tiny"}
EXACT = {"dtype": "float32", "batch_tokens": 40, "shard_rows": 4}


@pytest.fixture(scope="module")
def model():
    return with_lora("llama")


def run(model, folder, rows=None, provenance=MADE, **options):
    return embed(model, rows or Rows(LENGTHS), folder, provenance=provenance, **{**EXACT, **options})


def features_of(store):
    return store.features(pa.table({"source": ["pool"] * store.num_rows}))


@torch.no_grad()
def one_at_a_time(model, rows):
    """Unit embedding, its norm, and Hugging Face's own loss of each row, unpadded, by the formula."""
    unit, norms, losses = [], [], []
    for ids, labels in rows:
        out = model(input_ids=ids[None], labels=labels[None], output_hidden_states=True)
        weights = torch.arange(1, len(ids) + 1, dtype=torch.float64)
        pooled = (weights / weights.sum()) @ out.hidden_states[-1][0].double()
        norms.append(pooled.norm())
        unit.append(pooled / pooled.norm())
        losses.append(out.loss)
    return torch.stack(unit).numpy(), torch.stack(norms).numpy(), torch.stack(losses).numpy()


def as_examples(rows):
    return [
        (torch.tensor(ids).long(), torch.tensor(np.where(response, ids, -100)).long())
        for ids, response in rows.examples
    ]


@pytest.mark.parametrize("kind", CONFIGS)
def test_rows_are_those_of_the_base_model_alone(tmp_path, kind):
    """Also below a LoRA whose weights are not zero."""
    unit, norms, losses = one_at_a_time(tiny_model(kind), as_examples(Rows(LENGTHS)))
    for name, given_model in {"plain": tiny_model(kind), "adapted": with_lora(kind)}.items():
        store = run(given_model, tmp_path / name)
        found = features_of(store)
        assert found.num_checkpoints == 1
        assert found.dimension == 32
        np.testing.assert_allclose(found.checkpoint(0)[:], unit, atol=1e-5)
        np.testing.assert_allclose(found.losses[0], losses, rtol=1e-5)
        np.testing.assert_allclose(found.norms[0], norms, rtol=1e-5)
        assert np.isnan(found.gradient_norms).all()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_padding_on_either_side_changes_nothing(kind, side):
    model, rows = tiny_model(kind), random_examples([5, 17, 1, 9])
    batch = batch_of(rows, side)
    with torch.no_grad():
        pooled = position_weighted_mean(split_model(model).hidden(batch), batch["attention_mask"])
    unit, norms, _ = one_at_a_time(model, rows)
    np.testing.assert_allclose(pooled.numpy(), unit * norms[:, None], atol=1e-5)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), left=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_the_mean_is_weighted_by_position_and_never_sees_padding(lengths, left, seed):
    generator, longest = torch.Generator().manual_seed(seed), max(lengths)
    hidden = torch.randn(len(lengths), longest, 3, generator=generator)
    mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    expected = []
    for row, length in enumerate(lengths):
        place = slice(longest - length, longest) if left else slice(0, length)
        mask[row, place] = 1
        own = hidden[row, place].clone()
        expected.append(sum((i + 1) * own[i] for i in range(length)) / (length * (length + 1) / 2))
    hidden[mask == 0] = torch.nan
    torch.testing.assert_close(position_weighted_mean(hidden, mask), torch.stack(expected), rtol=1e-5, atol=1e-6)


@settings(max_examples=15)
@given(batch_tokens=st.integers(1, 200), shard_rows=st.integers(1, 12))
def test_batches_and_shards_change_only_rounding(model, tmp_path_factory, batch_tokens, shard_rows):
    whole = features_of(run(model, tmp_path_factory.mktemp("a")))
    cut = features_of(run(model, tmp_path_factory.mktemp("b"), batch_tokens=batch_tokens, shard_rows=shard_rows))
    np.testing.assert_allclose(whole.checkpoint(0)[:], cut.checkpoint(0)[:], atol=1e-5)
    np.testing.assert_allclose(whole.losses, cut.losses, rtol=1e-5)


def test_a_pass_that_was_killed_ends_with_the_same_bits(model, tmp_path, monkeypatch):
    run(model, tmp_path / "whole")
    real, calls = module.batch_embeddings, []

    def killed(*given_arguments):
        calls.append(1)
        if len(calls) % 4 == 0:
            raise KeyboardInterrupt
        return real(*given_arguments)

    monkeypatch.setattr(module, "batch_embeddings", killed)
    for _ in range(20):
        try:
            run(model, tmp_path / "killed")
            break
        except KeyboardInterrupt:
            continue
    monkeypatch.undo()
    assert len(calls) > 3
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "whole")
    for shard in (2, 0, 1):
        run(model, tmp_path / "apart", shards=[shard])
    assert shard_bytes(tmp_path / "apart") == shard_bytes(tmp_path / "whole")


def test_what_is_damaged_is_made_again_and_what_stands_is_kept(model, tmp_path, monkeypatch):
    store = run(model, tmp_path)
    before = shard_bytes(tmp_path)
    content = bytearray(store.shard_path(0, 1).read_bytes())
    content[-5] ^= 1
    store.shard_path(0, 1).write_bytes(content)
    with pytest.raises(StoreError, match=r"00001\.safetensors"):
        features_of(FeatureStore(tmp_path))
    made, real = [], module.batch_embeddings
    monkeypatch.setattr(module, "batch_embeddings", lambda *a: (made.extend(a[2]), real(*a))[1])
    run(model, tmp_path)
    assert shard_bytes(tmp_path) == before
    assert sorted(made) == [4, 5, 6, 7]


def test_a_finished_store_is_known_without_a_model_and_another_is_refused_by_name(model, tmp_path):
    assert finished_embeddings(tmp_path, len(LENGTHS), provenance=MADE, dtype="float32") is None
    run(model, tmp_path, shards=[0])
    assert finished_embeddings(tmp_path, len(LENGTHS), provenance=MADE, dtype="float32") is None
    run(model, tmp_path)
    store = finished_embeddings(tmp_path, len(LENGTHS), provenance=MADE, dtype="float32")
    assert store is not None
    assert store.missing() == []
    for rows, provenance, dtype in ((3, MADE, "float32"), (11, {"model": "x"}, "float32"), (11, MADE, "float16")):
        assert finished_embeddings(tmp_path, rows, provenance=provenance, dtype=dtype) is None
    with pytest.raises(StoreError, match=r"model: the store has 'tiny', now 'x'"):
        run(model, tmp_path, provenance={"model": "x"})
    with pytest.raises(StoreError, match="dtype"):
        run(model, tmp_path, dtype="float16")


def test_rows_are_float16_if_nothing_is_said(model, tmp_path):
    store = embed(model, Rows(LENGTHS), tmp_path / "half", provenance=MADE)
    assert store.manifest["dtype"] == "float16"
    exact = features_of(run(model, tmp_path / "exact")).checkpoint(0)[:]
    np.testing.assert_allclose(features_of(store).checkpoint(0)[:], exact, atol=1e-3)


def test_out_of_memory_halves_the_batch_and_goes_on(model, tmp_path, monkeypatch):
    plain = features_of(run(model, tmp_path / "plain"))
    real, sizes = module.batch_embeddings, []

    def small_machine(split, encoded, rows):
        sizes.append(len(rows))
        if len(rows) > 1:
            raise torch.OutOfMemoryError("too big")
        return real(split, encoded, rows)

    monkeypatch.setattr(module, "batch_embeddings", small_machine)
    found = features_of(run(model, tmp_path / "small"))
    assert max(sizes) > 1
    np.testing.assert_allclose(found.checkpoint(0)[:], plain.checkpoint(0)[:], atol=1e-5)
    monkeypatch.setattr(module, "batch_embeddings", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(DataError, match=r"pool\.jsonl, line \d+: .*max-length"):
        run(model, tmp_path / "none")


def test_adapter_mode_and_flags_are_as_before(model, tmp_path):
    model.train()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    ids = torch.arange(3, 9)[None]
    try:
        with torch.no_grad():
            before = model.eval()(input_ids=ids).logits
            run(model.train(), tmp_path)
            assert model.training
            after = model.eval()(input_ids=ids).logits
            plain = tiny_model("llama")(input_ids=ids).logits
    finally:
        model.eval()
    assert torch.equal(before, after)
    assert not torch.allclose(before, plain)
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}


def test_a_row_that_is_not_finite_is_named(tmp_path):
    model, rows = tiny_model("llama"), Rows(LENGTHS)
    with torch.no_grad():
        model.model.embed_tokens.weight[499] = torch.inf
    for ids, _ in rows.examples:
        ids[ids == 499] = 498
    rows.examples[4][0][3] = 499
    with pytest.raises(DataError, match=r"pool\.jsonl, line 5: .*not finite"):
        run(model, tmp_path, rows)


def test_a_row_of_one_token_has_an_embedding_and_no_loss(model, tmp_path):
    found = features_of(run(model, tmp_path, Rows([1, 4, 1])))
    np.testing.assert_allclose(np.linalg.norm(found.checkpoint(0)[:], axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.losses[0] == 0, [True, False, True])


def test_bf16_stays_near(tmp_path):
    exact = features_of(run(tiny_model("llama"), tmp_path / "exact"))
    found = features_of(run(tiny_model("llama").to(torch.bfloat16), tmp_path / "bf16"))
    assert (found.checkpoint(0)[:] * exact.checkpoint(0)[:]).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(found.losses, exact.losses, rtol=0.02)


def test_a_model_without_hidden_states_is_refused(tmp_path):
    with pytest.raises(ModelError, match="Linear: its last hidden states"):
        run(torch.nn.Linear(2, 2), tmp_path)
