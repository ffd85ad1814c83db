"""The whole road on a second device: run, inspect, evaluate, fine-tune, compare."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from pretend import NAME

from pursuit import Run, inspect
from pursuit.compare import Comparison, compare
from pursuit.evaluate import evaluate
from pursuit.finetune import FineTune, finetune
from pursuit.models.loading import Lora, prepare_trainable
from pursuit.online import batch_selection
from pursuit.store.features import FeatureStore
from test_run import SMALL, write_rows
from test_trajectory import Rows
from tiny import tiny_model, tiny_tokenizer

DTYPES = ["float32", "bfloat16"] if NAME == "cuda" else ["float32"]  # mixed precision needs a device's own kernels


def slowly(name):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_rows(folder / "pool.jsonl", 40, seed=0)
    write_rows(folder / "target.jsonl", 6, seed=1)
    rows = [json.loads(line) for line in (folder / "target.jsonl").read_text().split("\n") if line]
    choices = [{**row, "options": [row["response"], "wind sea"], "answer": 0} for row in rows]
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    return folder


def begun(place, name, device, **more):
    return Run(
        place / name, model=place / "model", pool=place / "pool.jsonl", target=place / "target.jsonl", device=device,
        **{**SMALL, **more},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_from_pool_to_selection_twice(place, dtype):
    chosen = []
    for name in ("one", "two"):
        made = begun(place, f"{name}-{dtype}", NAME, dtype=dtype)
        chosen.append(made.select("tagcos", 6, clusters=3).selection.indices.tolist())
    store = FeatureStore(place / f"one-{dtype}" / "features")
    rows = store.features(pa.table({"source": ["x"] * store.num_rows})).checkpoint(1)[:]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=2e-3)
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    "method",
    ["gtp", "rds", *(pytest.param(name, marks=pytest.mark.slow) for name in ("less", "perplexity", "gradnorm"))],
)
def test_methods_choose_what_they_choose_on_the_cpu(place, method):
    without_dropout = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}  # each device draws its own masks
    chosen = [
        begun(place, f"chosen-{device}", device, **without_dropout).select(method, 6).selection.indices.tolist()
        for device in ("cpu", NAME)
    ]
    assert len(set(chosen[0]) & set(chosen[1])) >= 5, "rounding may tip one"


def test_directions_are_those_of_the_cpu(place):
    """A basis of float32 singular vectors may turn a little; what it leaves of inner products does not."""
    found = []
    for device in ("cpu", NAME):
        settings = {
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}, "features": {**SMALL["features"], "directions": 0.25},
        }  # fmt: skip
        run = begun(place, f"directed-{device}", device, **settings)
        pool, target = (np.asarray(f.checkpoint(1)[:], np.float32) for f in (run.extract(), run.target_features()))
        found.append(pool @ target.T)
    np.testing.assert_allclose(found[1], found[0], atol=5e-3)


@pytest.mark.slow
def test_inspect_measures_and_proposes(place):
    found = inspect(model=place / "model", pool=place / "pool.jsonl", device=NAME, autotune=True, **SMALL)
    assert found.prediction.measurement is not None
    assert found.proposal.batch_tokens > 0


def test_scores_are_those_of_the_cpu(place):
    found = [
        evaluate(
            tiny_model("llama").to(device), tiny_tokenizer(), str(place / "heldout.jsonl"),
            metrics=["loss", "exact", "choice"],
        )
        for device in ("cpu", NAME)
    ]  # fmt: skip
    for metric, score in found[0].overall.items():
        assert found[1].overall[metric].mean == pytest.approx(score.mean, rel=1e-4)
    assert found[0].examples["prediction"].to_pylist() == found[1].examples["prediction"].to_pylist()


@pytest.mark.parametrize("selection", [None, "optbatch", *map(slowly, ("infobatch", "random", "hardest"))])
def test_weighted_training_with_and_without_batch_selection(tmp_path, selection):
    losses = []
    for device in ("cpu", NAME):
        model = prepare_trainable(tiny_model("llama"), lora=Lora(rank=4, alpha=16, dropout=0.0)).to(device)
        recipe = FineTune(epochs=3, batch_size=8, learning_rate=1e-2, micro_batch_tokens=100, weighted=True)
        chosen = None if selection is None else batch_selection(selection, prune=0.5)
        made = finetune(
            model, Rows(16), tmp_path / device, recipe, weights=np.linspace(0.5, 1.5, 16), batch_selection=chosen
        )
        log = [json.loads(line) for line in (made.folder / "log.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in log])
    np.testing.assert_allclose(losses[0], losses[1], rtol=5e-3)


@pytest.mark.slow
def test_a_comparison(place):
    run = begun(place, "compared", NAME)
    comparison = Comparison(
        methods=["tagcos(clusters=3)"], budgets=["20%"], seeds=1, evaluation=[str(place / "heldout.jsonl")],
        train=FineTune(max_steps=2, batch_size=4, learning_rate=1e-2), metrics=("loss", "exact"),
    )  # fmt: skip
    rows = compare(run, comparison, place / "comparison").runs.to_pylist()
    assert not any(row["failed"] for row in rows)
    assert {row["method"] for row in rows} == {"full", "random", "tagcos(clusters=3)", "untrained"}
    assert torch.isfinite(torch.tensor([row["score.loss"] for row in rows])).all()


def test_batches_are_large_where_nobody_says_how_large(place):
    settings = {"model": place / "model", "pool": place / "pool.jsonl"}
    for device, tokens in (("cpu", 2048), (NAME, 16384)):
        found = Run(place / f"usual-{device}", device=device, **settings).settings
        assert found.features.batch_tokens == found.warmup.micro_batch_tokens == tokens
    given = Run(place / "given", device=NAME, features={"batch_tokens": 99}, **settings).settings
    assert (given.features.batch_tokens, given.warmup.micro_batch_tokens) == (99, 16384)
