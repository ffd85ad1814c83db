"""The predictions of `pursuit inspect` against what a run then really takes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pursuit import inspection
from pursuit.gradients.extract import as_extracted
from pursuit.inspection import autotune, inspect
from pursuit.inspection.pools import choose_examples
from pursuit.inspection.predict import at_rates, batch_sizes, planned_batches
from pursuit.inspection.prospects import Proposal
from pursuit.models.loading import Lora
from pursuit.models.trainable import parameter_count, prepare_trainable, trainable_parameters
from pursuit.run import directions
from pursuit.run.run import Run
from tiny import tiny_model, tiny_tokenizer

SMALL: dict[str, Any] = {
    "lora": {"rank": 2}, "warmup": {"checkpoint_steps": [1, 3], "batch_size": 8},
    "features": {"dimension": 1024, "shard_rows": 32, "batch_tokens": 256},
}  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A saved tiny model and a pool of 80 rows, as settings."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name, rows in (("pool", 80), ("target", 5)):
        lines = [json.dumps({"prompt": f"Count to {n}.", "response": "and " * (n % 17 + 1)}) for n in range(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return {"model": str(folder / "model"), "pool": [str(folder / "pool.jsonl")], **SMALL}


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize(("dtype", "projection"), [("float16", "sparse"), ("float32", "none"), ("int8", "factored")])
def test_predicted_store_and_checkpoints_are_as_large_as_the_real_ones(
    values: dict[str, Any], tmp_path: Path, dtype: str, projection: str
) -> None:
    features = {**SMALL["features"], "dtype": dtype, "projection": projection}
    settings = {**values, "lora": {"rank": 16}, "features": features}
    predicted = inspect(**settings, measure=False).prediction
    assert predicted is not None
    run = Run(tmp_path, **settings)
    stored = run.extract()
    assert (predicted.checkpoints, predicted.dimension) == (stored.num_checkpoints, stored.dimension)
    assert predicted.parameters == parameter_count(run.model)
    assert predicted.store_bytes == pytest.approx(stored_bytes(run.folder.features), rel=0.02)
    assert predicted.trajectory_bytes == pytest.approx(stored_bytes(run.folder.warmup), rel=0.1)


@pytest.mark.parametrize(("preconditioner", "projection", "told"), [
    ("adam", "sparse", True), ("sign", "sparse", False), ("sgd", "tensorsketch", False),
])  # fmt: skip
def test_gradients_of_large_matrices_need_not_be_formed_and_that_is_said(
    values: dict[str, Any], tmp_path: Path, preconditioner: str, projection: str, told: bool
) -> None:
    tiny_model("llama", hidden_size=256, intermediate_size=512).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    features = {**SMALL["features"], "dimension": 8, "projection": projection, "preconditioner": preconditioner}
    settings = {**values, "model": str(tmp_path / "model"), "weights": ["*proj*"], "features": features}
    found = inspect(**settings, measure=False)
    assert any("--features.projection tensorsketch" in warning for warning in found.warnings) is told
    lora = inspect(**{**values, "features": features}, measure=False)
    assert not any("tensorsketch" in warning for warning in lora.warnings)


def test_directions_are_counted(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = [values["pool"][0].replace("pool.jsonl", "target.jsonl")]
    settings = {**values, "target": target, "features": {**SMALL["features"], "directions": 0.25}}
    found = inspect(**settings).prediction
    assert found is not None
    assert found.hours is not None
    parts = (found.warmup_seconds, found.directions_seconds, found.feature_seconds, found.target_seconds)
    assert found.hours == pytest.approx(sum(part or 0.0 for part in parts) / 3600)
    assert found.directions_seconds
    passed: list[int] = []
    real = directions.extract
    monkeypatch.setattr(
        directions, "extract", lambda *what, **how: (passed.append(int(what[2].lengths.sum())), real(*what, **how))[1]
    )
    monkeypatch.setattr(directions.shutil, "rmtree", lambda _: None)
    run = Run(tmp_path, **settings)
    run.warmup()
    assert found.directions_tokens == pytest.approx(sum(passed), rel=0.2)  # the pool's sample is random
    written = run.folder.directions.stat().st_size + stored_bytes(run.folder.directions.with_suffix(".rows"))
    assert found.directions_bytes == pytest.approx(written, rel=0.05)


@pytest.mark.parametrize(
    ("preconditioner", "projection"), [("adam", "sparse"), ("sgd", "none"), ("adam", "tensorsketch")]
)
def test_hours_are_positive_and_add_up(values: dict[str, Any], preconditioner: str, projection: str) -> None:
    target = [values["pool"][0].replace("pool.jsonl", "target.jsonl")]
    settings = {**values, "features": {**SMALL["features"], "preconditioner": preconditioner, "projection": projection}}
    found = inspect(**settings, target=target).prediction
    assert found is not None
    assert found.measurement is not None
    assert found.measurement.problem is None
    assert found.warmup_seconds is not None
    assert found.feature_seconds is not None
    assert found.target_seconds is not None
    assert min(found.warmup_seconds, found.feature_seconds, found.target_seconds) > 0
    assert found.hours == pytest.approx((found.warmup_seconds + found.feature_seconds + found.target_seconds) / 3600)
    assert found.memory.bytes > 0
    assert "measured" in found.memory.how


def test_a_dense_projection_is_predicted_to_take_longer(values: dict[str, Any]) -> None:
    seconds = {}
    for projection in ("sparse", "rademacher"):
        changes = {"lora": {"rank": 64}, "features": {"projection": projection}}
        found = inspect(**{**values, **changes}).prediction
        assert found is not None
        assert found.feature_seconds is not None
        seconds[projection] = found.feature_seconds
    assert seconds["rademacher"] > 2 * seconds["sparse"]


def test_predicted_seconds_of_the_features_are_those_of_the_real_pass(values: dict[str, Any], tmp_path: Path) -> None:
    found = inspect(**values).prediction
    assert found is not None
    assert found.feature_seconds is not None
    run = Run(tmp_path, **values)
    run.warmup()
    begun = time.perf_counter()
    run.extract()
    assert found.feature_seconds / 5 < time.perf_counter() - begun < 10 * found.feature_seconds + 1


def test_without_measuring_there_are_no_hours_and_all_else(values: dict[str, Any]) -> None:
    found = inspect(**values, measure=False).prediction
    assert found is not None
    assert found.hours is found.measurement is found.feature_seconds is None
    assert found.warmup_steps == 3
    assert found.memory.bytes > 0
    assert "counted" in found.memory.how


def test_measuring_leaves_the_model_as_it_was(values: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    fresh = Run(tmp_path / "fresh", **values).model
    seen: list[Run] = []
    original = Run.__init__
    monkeypatch.setattr(Run, "__init__", lambda self, *a, **k: (seen.append(self), original(self, *a, **k))[1])
    inspect(**values)
    model = seen[0].model
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, parameter in trainable_parameters(model).items():
        assert torch.equal(parameter, trainable_parameters(fresh)[name])


def test_rows_longer_than_the_models_context_are_a_warning_and_no_crash(tmp_path: Path) -> None:
    tiny_model("gpt2", n_positions=32).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "pool.jsonl").write_text(json.dumps({"prompt": "Count.", "response": "one two three " * 20}))
    found = inspect(model=tmp_path / "model", pool=tmp_path / "pool.jsonl", lora={"rank": 2})
    assert any("--max-length 32" in warning for warning in found.warnings)
    assert any("timed batches failed" in warning for warning in found.warnings)
    assert found.prediction is not None
    assert found.prediction.hours is None


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(0, 40))
def test_chosen_examples_are_distinct_and_no_source_waits_for_a_third_turn_of_another(
    sources: list[str], count: int
) -> None:
    chosen = choose_examples(pa.table({"source": sources}), count)
    assert len(chosen) == len(set(chosen)) == min(count, len(sources))
    shown = [sources[index] for index in chosen]
    for source in set(sources):
        if shown.count(source) < sources.count(source):
            assert all(shown.count(other) <= shown.count(source) + 1 for other in set(sources))


def test_autotune_proposes_what_its_measurements_say(values: dict[str, Any], tmp_path: Path) -> None:
    """The smallest d whose two seeds agree, a stored type that adds little to its noise, the fastest batch; and the
    prediction is that of a run with the proposal."""
    found = inspect(**{**values, "lora": {"rank": 16}}, autotune=True)
    proposal, prediction = found.proposal, found.prediction
    assert proposal is not None
    assert prediction is not None
    grown = list(proposal.agreement.values())
    assert grown[-1] > grown[0]
    assert all(value < autotune.ENOUGH for d, value in proposal.agreement.items() if d < proposal.dimension)
    assert proposal.agreement[proposal.dimension] >= autotune.ENOUGH or proposal.dimension == max(proposal.agreement)
    assert proposal.code_error["float16"] < proposal.code_error["int8"] < proposal.code_error["bits"]
    assert proposal.code_error[proposal.dtype] <= autotune.ADDED
    assert proposal.rates[proposal.batch_tokens] >= 0.97 * max(proposal.rates.values())
    settings = {**values, "lora": {"rank": 16}, "features": {**SMALL["features"], **proposal.settings()}}
    run = Run(tmp_path, **settings)
    lengths = run.encode().lengths
    sizes = batch_sizes(lengths, planned_batches(lengths, run.settings.feature_recipe()))
    assert sizes.sum() == prediction.feature_tokens
    assert prediction.feature_seconds == pytest.approx(prediction.checkpoints * at_rates(proposal.rates, sizes))
    assert run.extract().dimension == prediction.dimension == proposal.dimension
    assert prediction.store_bytes == pytest.approx(stored_bytes(run.folder.features), rel=0.05)


def test_a_proposal_that_a_run_would_refuse_is_said_to_need_a_new_one(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other, same = (Proposal(9, {d: 0.96}, {}, {512: 1.0}, d, "float16", 512) for d in (2048, 1024))

    def says(proposal: Proposal) -> bool:
        monkeypatch.setattr(inspection, "autotune_features", lambda *_: proposal)
        found = inspection.inspect_pool(tmp_path / "run", {} if run.folder.encoded.exists() else values, 0, False, True)
        assert found.proposal is not None
        said = "--features.dtype need a new run folder" in " ".join(capsys.readouterr().out.split())
        assert said == found.proposal.needs_new_run
        return said

    run = Run(tmp_path / "run", **values)
    assert not says(other), "no run is there yet"
    run.encode()
    assert not says(other), "only tokens stand"
    run.extract()
    assert says(other)
    assert not says(same)


def test_agreement_of_two_seeds_is_that_of_two_extractions(values: dict[str, Any], tmp_path: Path) -> None:
    """At the model as given, so of a run whose warm-up does not move it."""
    frozen = {**values, "warmup": {"checkpoint_steps": [1], "batch_size": 8, "learning_rate": 1e-30}}
    found = inspect(**values, autotune=True).proposal
    assert found is not None
    products = []
    for seed in (0, 1):
        features = {**SMALL["features"], "preconditioner": "sgd", "dtype": "float32", "seed": seed}
        rows = Run(tmp_path / str(seed), **{**frozen, "features": features}).extract().checkpoint(0)[:]
        products.append((rows @ rows.T)[np.triu_indices(len(rows), 1)])
    assert found.rows == 80
    assert found.agreement[1024] == pytest.approx(np.corrcoef(*products)[0, 1], abs=1e-3)


def test_a_model_in_bfloat16_is_timed_as_extraction_computes_it(values: dict[str, Any]) -> None:
    """Its adapters are trained in float32, and compute in bfloat16 for features."""
    settings = {**values, "lora": {"rank": 16, "dropout": 0.0}, "dtype": "bfloat16"}
    found = inspect(**settings, autotune=True).prediction
    assert found is not None
    assert found.measurement is not None
    assert found.measurement.problem is None
    assert found.feature_seconds is not None
    model = prepare_trainable(tiny_model("llama").to(torch.bfloat16), lora=Lora(rank=2))
    before = {name: (p.dtype, p.detach().clone()) for name, p in trainable_parameters(model).items()}
    with as_extracted(model):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for name, parameter in trainable_parameters(model).items():
        assert parameter.dtype == before[name][0] == torch.float32
        assert torch.equal(parameter, before[name][1])
