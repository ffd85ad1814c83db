"""What a forward pass of the model as given is enough for: loss, perplexity and similarity, without a warm-up."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from pursuit import Run
from pursuit.errors import SelectionError, SettingsError
from pursuit.gradients.embeddings import embed
from pursuit.selectors import METHODS, Loss, Perplexity, Rds, method
from pursuit.store.features import Features
from test_selectors_baselines import known
from tiny import tiny_model, tiny_tokenizer

WORDS = "the capital of france is paris and of italy it is rome".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forward")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    lines = [{"prompt": WORDS[i % 12], "response": " ".join(WORDS[i % 5 : 6 + i % 7])} for i in range(30)]
    for name, part in {"pool": lines, "target": lines[7:10]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    return folder


def make_run(place, name):
    return Run(
        place / name, model=place / "model", pool=place / "pool.jsonl", target=place / "target.jsonl",
        lora={"rank": 2, "alpha": 4}, features={"dimension": 32},
        warmup={"batch_size": 4, "checkpoint_steps": [1, 2], "learning_rate": 1e-3},
    )  # fmt: skip


@pytest.fixture(scope="module")
def embedded(place, tmp_path_factory):
    """Rows of a run and their embeddings at the model as given."""
    encoded = make_run(place, "encoded").encode()
    store = embed(tiny_model("llama"), encoded, tmp_path_factory.mktemp("store"), provenance={})
    return encoded, store.features(encoded.rows)


def losses_of(encoded) -> np.ndarray:
    model, losses = tiny_model("llama"), []
    for row in range(len(encoded)):
        ids, response = encoded[row]
        tokens = torch.tensor(ids).long()[None]
        with torch.no_grad():
            loss = model(input_ids=tokens, labels=tokens.where(torch.tensor(response), -100)).loss
        losses.append(loss.item())
    return np.array(losses)


def test_losses_of_a_forward_pass_are_enough(embedded):
    encoded, features = embedded
    losses = losses_of(encoded)
    selection = Loss().select(features, 8)
    np.testing.assert_allclose(selection.scores, np.sort(losses)[::-1][:8], rtol=1e-5)
    middle = Perplexity().select(features, 8)
    np.testing.assert_allclose(middle.scores, np.exp(losses[middle.indices]), rtol=1e-4)
    assert losses.min() < losses[middle.indices].min() <= losses[middle.indices].max() < losses.max()


def test_rows_of_the_pool_that_are_the_target_come_first(embedded):
    features, rows = embedded[1], [7, 8, 9]
    target = Features(
        [features.checkpoint(0)[np.array(rows)]], np.ones(1), features.rows.take(rows),
        features.gradient_norms[:, rows], features.losses[:, rows],
    )  # fmt: skip
    selection = Rds().select(features, 3, target=target)
    assert selection.indices.tolist() == [7, 8, 9]
    np.testing.assert_allclose(selection.scores, 1, atol=1e-5)


def test_which_methods_do_with_a_forward_pass_follows_from_their_settings():
    for kind in (Loss, Perplexity):
        assert kind().at == "base"
        assert kind().needs_embeddings
        assert not kind(at="last").needs_embeddings
        assert not kind(at="average").needs_embeddings
    assert {name for name, kind in METHODS.items() if kind().needs_embeddings} == {"loss", "perplexity", "rds"}
    with pytest.raises(SettingsError, match='"base" or "last" or "average"'):
        method("loss", at="first")


def test_losses_at_checkpoints_are_not_taken_for_those_of_the_model_as_given():
    trajectory = known(losses=[[1.0, 3.0], [4.0, 2.0]], weights=(0.75, 0.25))
    for kind in (Loss, Perplexity):
        with pytest.raises(SelectionError, match=r"losses at 2 checkpoints .* at=last or at=average"):
            kind().select(trajectory, 1)
    assert Loss(at="last").select(trajectory, 1).indices.tolist() == [0]
    assert Loss(at="average").select(trajectory, 1).indices.tolist() == [1]


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 3)])
def test_features_of_ones_own_have_no_losses(shape):
    own = Features.from_array(np.random.default_rng(0).standard_normal(shape))
    for kind in (Loss, Perplexity):
        with pytest.raises(SelectionError, match="losses of the rows are not known"):
            kind().select(own, 1)


def test_a_run_needs_no_warmup_for_them_and_keeps_the_embeddings(place, embedded, monkeypatch):
    run, (encoded, features) = make_run(place, "run"), embedded
    hardest = np.argsort(-losses_of(encoded), kind="stable")[:5]
    assert run.select(Loss(), 5).selection.indices.tolist() == hardest.tolist()
    assert not run.folder.warmup.exists()
    monkeypatch.setattr("pursuit.gradients.embeddings.batch_embeddings", lambda *_: pytest.fail("computed again"))
    assert run.select("perplexity", 5).selection.indices.tolist() == Perplexity().select(features, 5).indices.tolist()
    monkeypatch.undo()
    nearest = run.select(Rds(), 3)
    assert nearest.selection.indices.tolist() == [7, 8, 9]
    assert not run.folder.warmup.exists()
    assert nearest.report.exists()
    after = run.select(Loss(at="last"), 5).selection
    assert run.folder.warmup.exists()
    assert run.select("loss", 5).selection.indices.tolist() == hardest.tolist()
    assert after.scores.tolist() != run.select("loss", 5).selection.scores.tolist()


@pytest.mark.parametrize("trained", [{"weights": ["model.layers.1.mlp.*"]}, {}])
def test_the_model_as_given_is_meant_also_after_the_warmup(place, embedded, tmp_path, trained):
    run = Run(
        tmp_path / "run", model=place / "model", pool=place / "pool.jsonl", features={"dimension": 32},
        warmup={"batch_size": 4, "checkpoint_steps": [1, 2], "learning_rate": 1e-1}, **trained,
    )  # fmt: skip
    run.extract()
    expected = np.sort(losses_of(embedded[0]))[::-1]
    np.testing.assert_allclose(run.select("loss", 30).selection.scores, expected, rtol=1e-4)
