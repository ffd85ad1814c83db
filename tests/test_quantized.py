"""Frozen weights in 4 bits: gradients of the model that they are, from the first pass to the trained adapter."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pursuit import Run
from pursuit.cli import main
from pursuit.errors import ModelError, RunError, SettingsError
from pursuit.gradients import example_gradients
from pursuit.inspection.costs import shape_of
from pursuit.inspection.memory import weight_bytes
from pursuit.models.loading import load_model
from pursuit.models.trainable import Lora, prepare_trainable, trainable_parameters
from pursuit.online.flops import model_flops
from test_run import SMALL, write_rows
from tiny import tiny_model, tiny_tokenizer

WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4, "head_dim": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    tiny_model("llama", **WIDE).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_rows(folder / "pool.jsonl", 24, seed=0)
    return folder


def loaded(place: Path, **options: Any) -> Any:
    return load_model(place / "model", device="cpu", **options)


def features(run: Run) -> np.ndarray:
    return np.asarray(run.extract().checkpoint(1)[:], dtype=np.float32)


def command(*arguments: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert not stop.value.code


def test_gradients_equal_one_at_a_time_autograd(place: Path) -> None:
    model = prepare_trainable(loaded(place, load_in_4bit=True), lora=Lora(rank=4, alpha=8, dropout=0.0))
    with torch.no_grad():  # B is zero in a new LoRA, and then so are A's gradients
        for name, parameter in trainable_parameters(model).items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    ids = torch.randint(3, 512, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    found = example_gradients(model, {"input_ids": ids, "attention_mask": mask, "labels": labels})
    for row in range(3):
        model.zero_grad()
        length = int(mask[row].sum())
        model(input_ids=ids[row : row + 1, :length], labels=labels[row : row + 1, :length]).loss.backward()
        plain = torch.cat([p.grad.flatten() for _, p in sorted(trainable_parameters(model).items())])
        torch.testing.assert_close(found[row], plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


def test_weights_take_less_room_and_count_as_before(place: Path) -> None:
    whole, packed = loaded(place, dtype="bfloat16"), loaded(place, dtype="bfloat16", load_in_4bit=True)
    inner = [name for name, _ in whole.named_parameters() if "proj" in name]

    def room(model: Any) -> int:
        parameters = dict(model.named_parameters())
        return sum(parameters[name].numel() * parameters[name].element_size() for name in inner)

    assert room(packed) * 4 == room(whole)
    assert weight_bytes(packed) < weight_bytes(whole)
    lora = Lora(rank=4)
    whole, packed = prepare_trainable(whole, lora=lora), prepare_trainable(packed, lora=lora)
    assert shape_of(packed) == shape_of(whole)
    assert model_flops(packed) == model_flops(whole)


def test_the_whole_road(place: Path, tmp_path: Path) -> None:
    run, subset, tuned = tmp_path / "run", tmp_path / "subset.jsonl", tmp_path / "tuned"
    pool = place / "pool.jsonl"
    usual = Run(tmp_path / "usual", model=place / "model", pool=pool, **SMALL)
    other = Run(run, model=place / "model", pool=pool, load_in_4bit=True, **SMALL)
    for one in (usual, other):
        one.select("tagcos", 6, clusters=3, out=subset)
    alike = (features(usual) * features(other)).sum(1)
    assert 0.5 < alike.mean() < 0.999  # near the model's own, and not the same

    again = {"model": place / "model", "pool": pool, "load_in_4bit": True, **SMALL}
    assert np.array_equal(features(Run(tmp_path / "again", **again)), features(other))
    again["features"] = {**SMALL["features"], "batch_tokens": 40}
    np.testing.assert_allclose(features(Run(tmp_path / "in-small-batches", **again)), features(other), atol=2e-3)

    Run(run, model=place / "model", pool=pool).select("gradnorm", 6)  # goes on in 4 bits
    with pytest.raises(RunError, match="load_in_4bit"):
        Run(run, load_in_4bit=False).extract()

    training = ("finetune", "--run", run, "--subset", subset, "--steps", 2, "--out")
    command(*training, tuned)
    command(*training, tmp_path / "some", "--weights", "*k_proj*")  # as they are: 4 bits are the LoRA's
    command(*training, tmp_path / "full", "--full")
    stored = load_file(tmp_path / "full" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    scored = ("evaluate", "--run", run, "--adapter", tuned, "--eval", pool)
    command(*scored, "--out", tmp_path / "scores")
    command(*scored, "--no-load-in-4bit", "--out", tmp_path / "whole")
    scores = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("scores", "whole")]
    found = [one["overall"]["loss"]["mean"] for one in scores]
    assert found[0] != found[1]
    assert abs(found[0] - found[1]) < 0.2 * found[1]


def test_what_cannot_be_in_4_bits_is_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed_already = tmp_path / "model.gguf"
    packed_already.touch()
    with pytest.raises(ModelError, match="give the safetensors"):
        load_model(packed_already, device="cpu", load_in_4bit=True)
    with pytest.raises(SettingsError, match=r"weights = .*cannot be trained in 4 bits"):
        Run(tmp_path / "run", model=place / "model", pool=place / "pool.jsonl", load_in_4bit=True, weights=["*"])
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))
    with pytest.raises(ModelError, match=r"pip install bitsandbytes"):
        loaded(place, load_in_4bit=True)
    run = Run(tmp_path / "run", model=place / "model", pool=place / "pool.jsonl", load_in_4bit=True)
    with pytest.raises(ModelError, match=r"pip install bitsandbytes"):
        run.encode()
    assert not list((tmp_path / "run").rglob("*.safetensors"))
