"""The whole road for every kind of model, of trainable weights, and of pool file."""

from __future__ import annotations

import csv
import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from peft import LoraConfig, get_peft_model

from pursuit import Gtp, Less, Run
from pursuit.errors import ModelError, PursuitError
from pursuit.selectors import METHODS
from pursuit.settings import settings_from
from pursuit.store.features import FeatureStore
from test_run import SMALL, write_rows
from tiny import CONFIGS, tiny_model, tiny_tokenizer


def make_model(folder, kind="llama", chat_template="keep"):
    tiny_model(kind).save_pretrained(folder)
    tokenizer = tiny_tokenizer() if chat_template == "keep" else tiny_tokenizer(chat_template)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    path = tmp_path_factory.mktemp("pool") / "pool.jsonl"
    write_rows(path, 40, seed=0)
    return path


def whole_road(folder, model, pool, **settings):
    run = Run(folder, model=model, pool=pool, **{**SMALL, **settings})
    result = run.select("tagcos", 6, clusters=3)
    assert len(result.subset.read_bytes().splitlines()) == 6
    store = FeatureStore(folder / "features")
    rows = store.features(pa.table({"source": ["x"] * store.num_rows})).checkpoint(1)[:]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=2e-3)  # float16 rows
    return store, rows


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture(tmp_path, pool, kind):
    whole_road(tmp_path / "run", make_model(tmp_path / "model", kind), pool)


@pytest.mark.parametrize("preconditioner", ["sgd", "sign", "less", "adam"])
def test_every_preconditioner(tmp_path, pool, preconditioner):
    features = {**SMALL["features"], "preconditioner": preconditioner}
    whole_road(tmp_path / "run", make_model(tmp_path / "model"), pool, features=features)


def test_rows_of_a_target_are_plain_gradients_or_as_the_pools(tmp_path, pool):
    model = make_model(tmp_path / "model")
    for kind, as_pool in (("auto", (False, True)), ("same", (True, True)), ("sgd", (False, False))):
        features = {**SMALL["features"], "target_preconditioner": kind}  # a run may go on with another
        run = Run(tmp_path / "run", model=model, pool=pool, target=pool, **{**SMALL, "features": features})
        mine = numbers(run.extract())
        for selector, same in zip((Less(), Gtp()), as_pool, strict=True):
            goals = numbers(run.target_features(follows=selector.follows_target))
            assert np.array_equal(mine, goals) == same


def numbers(features):
    return np.stack([features.checkpoint(t)[:] for t in range(features.num_checkpoints)])


@pytest.mark.parametrize(
    ("given", "kept"),
    [({}, False), ({"momentum": True}, True), ({"preconditioner": "less"}, True),
     ({"preconditioner": "less", "momentum": False}, False)],
)  # fmt: skip
def test_the_momentum_stays_where_less_has_it_or_where_it_is_asked_for(given, kept):
    assert settings_from({"features": given}).feature_recipe().momentum is kept


@pytest.mark.parametrize("projection", ["sparse", "rademacher", "none"])
def test_every_projection(tmp_path, pool, projection):
    features = {**SMALL["features"], "projection": projection}
    store, _ = whole_road(tmp_path / "run", make_model(tmp_path / "model"), pool, features=features)
    coordinates = 2 * (4 * (32 + 32) * 2 + 4 * (32 + 16) * 2)  # layers × rank × (in + out) of q and o, of k and v
    assert store.manifest["dimension"] == (coordinates if projection == "none" else 64)


def test_bf16(tmp_path, pool):
    whole_road(tmp_path / "run", make_model(tmp_path / "model"), pool, dtype="bfloat16")


def test_named_weights(tmp_path, pool):
    weights = ["model.layers.1.mlp.*", "model.norm.weight"]
    store, _ = whole_road(
        tmp_path / "run", make_model(tmp_path / "model"), pool, weights=weights,
        features={**SMALL["features"], "projection": "none"},
    )  # fmt: skip
    assert store.manifest["dimension"] == 3 * 32 * 48 + 32


def test_an_existing_adapter(tmp_path, pool):
    make_model(tmp_path / "model")
    adapter = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained(tmp_path / "adapter")
    store, _ = whole_road(
        tmp_path / "run", tmp_path / "model", pool, adapter=str(tmp_path / "adapter"),
        features={**SMALL["features"], "projection": "none"},
    )  # fmt: skip
    assert store.manifest["dimension"] == 2 * 2 * (32 + 32)


def test_every_method_on_one_run(tmp_path, pool):
    """The gradients are extracted once; a method that can use the target is given it."""
    target = tmp_path / "target.jsonl"
    write_rows(target, 6, seed=9)
    run = Run(tmp_path / "run", model=make_model(tmp_path / "model"), pool=pool, target=target, **SMALL)
    run.extract()
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "features").rglob("*.safetensors")}
    for name in METHODS:
        result = run.select(name, 6, **({"clusters": 3} if name == "tagcos" else {}))
        assert len(result.selection) == 6
        assert result.report.exists()
    assert stored == {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "features").rglob("*.safetensors")}


def test_files_of_several_kinds_in_one_pool(tmp_path):
    """Chat in gzipped JSONL, alpaca in Parquet, questions in CSV; rows of each kind come back."""
    chat = [{"messages": [{"role": "user", "content": f"what is {i}"}, {"role": "assistant", "content": f"it is {i}"}]}
            for i in range(12)]  # fmt: skip
    (tmp_path / "chat.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, chat)).encode()))
    alpaca = [{"instruction": f"count {i}", "input": "apple", "output": f"five {i}"} for i in range(12)]
    pq.write_table(pa.Table.from_pylist(alpaca), tmp_path / "alpaca.parquet")
    with open(tmp_path / "qa.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["question", "answer"])
        writer.writerows([f"capital of {i}?", f"city {i}"] for i in range(12))
    pools = [tmp_path / "chat.jsonl.gz", tmp_path / "alpaca.parquet", f"quiz={tmp_path / 'qa.csv'}"]
    run = Run(tmp_path / "run", model=make_model(tmp_path / "model"), pool=pools, **SMALL)
    result = run.select("stratified", 9, out=tmp_path / "subset.jsonl")
    sources = pq.read_table(result.table)["source"].to_pylist()
    assert {source: sources.count(source) for source in set(sources)} == {"chat": 3, "alpaca": 3, "quiz": 3}
    rows = [json.loads(line) for line in (tmp_path / "subset.jsonl").read_text().splitlines()]
    assert [("messages" in row, "instruction" in row, "question" in row).index(True) for row in rows] == [
        ["chat", "alpaca", "quiz"].index(source) for source in sources
    ]


def test_a_base_model_without_chat_template_says_how_to_go_on(tmp_path, pool):
    model = make_model(tmp_path / "model", chat_template=None)
    with pytest.raises(ModelError, match="plain"):
        Run(tmp_path / "run", model=model, pool=pool, **SMALL).encode()
    whole_road(tmp_path / "other", model, pool, chat_template="plain")


def test_a_model_that_cannot_be_used_is_named(tmp_path, pool):
    (tmp_path / "empty").mkdir()
    for model in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(PursuitError, match=model.name):
            Run(tmp_path / f"run-{model.name}", model=model, pool=pool, **SMALL).encode()
