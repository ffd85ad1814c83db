"""What a fine-tuning leaves in its folder, what is taken up again, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from pursuit.errors import DataError, ModelError, SettingsError, StoreError
from pursuit.finetune import Finetuned, finetune
from pursuit.models.loading import prepare_trainable
from test_finetune import PLAIN, chosen, new_model, short
from test_trajectory import Rows
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finetune") / "adapter"
    finetune(new_model(), Rows(20), folder, short(), tokenizer=tiny_tokenizer(), made_with={"model": "tiny"})
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_an_adapter_is_left_that_peft_and_pursuit_load(copied: Path) -> None:
    trained = new_model()
    done = finetune(trained, Rows(20), copied, short(), made_with={"model": "tiny"})  # loaded, not trained
    by_peft = PeftModel.from_pretrained(tiny_model("llama"), str(copied))
    ids = torch.arange(5, 25)[None]
    for other in (by_peft, prepare_trainable(tiny_model("llama"), adapter=copied)):
        assert torch.equal(other(input_ids=ids).logits, trained(input_ids=ids).logits)
    assert not torch.equal(tiny_model("llama")(input_ids=ids).logits, trained(input_ids=ids).logits)
    assert done.adapter
    assert AutoTokenizer.from_pretrained(copied)("a question") == tiny_tokenizer()("a question")


def test_a_whole_model_is_left_that_transformers_loads(tmp_path: Path) -> None:
    model = new_model("full")
    done = finetune(model, Rows(20), tmp_path, short(), tokenizer=tiny_tokenizer())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), model.parameters(), strict=True))
    assert not done.adapter
    fresh = new_model("full")
    Finetuned.load(tmp_path).load_into(fresh)
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), model.parameters(), strict=True))


def test_the_record_and_the_log_say_what_happened(finished: Path) -> None:
    record = json.loads((finished / "finetune.json").read_text())
    assert record["made_from"]["learning_rate"] == 1e-2
    assert record["made_from"]["model"] == "tiny"
    assert "torch" in record["versions"]
    done = Finetuned.load(finished)
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert tuple(line["loss"] for line in lines) == done.losses
    assert lines[-1]["tokens"] == done.tokens
    assert lines[0]["learning_rate"] == 0.0  # rising over the first of six steps
    assert lines[-1]["epoch"] == 2.0
    assert done.seconds > 0
    assert done.peak_memory_bytes > 1e7


def test_no_pickle_and_no_remains(finished: Path) -> None:
    names = sorted(path.relative_to(finished).as_posix() for path in finished.rglob("*"))
    assert {Path(name).suffix for name in names} <= {".safetensors", ".json", ".jsonl", ".jinja"}
    assert not [name for name in names if "recovery" in name or "partial" in name]


def test_a_finished_one_is_not_trained_again(copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.iterdir()}
    finetune(new_model(), Rows(20), copied, short(recovery_seconds=0.0), made_with={"model": "tiny"})
    assert {path: path.stat().st_mtime_ns for path in copied.iterdir()} == before


@pytest.mark.parametrize("harm", ["cut off", "missing"])
def test_a_model_that_is_not_as_it_was_written_is_trained_again(copied: Path, harm: str) -> None:
    weights = copied / "adapter_model.safetensors"
    before = weights.read_bytes()
    if harm == "missing":
        weights.unlink()
    else:
        weights.write_bytes(before[:-8])
    again = finetune(new_model(), Rows(20), copied, short(), tokenizer=tiny_tokenizer(), made_with={"model": "tiny"})
    assert weights.read_bytes() == before
    assert len((copied / "log.jsonl").read_text().splitlines()) == again.steps == 6


def test_a_record_that_was_changed_says_what_to_delete(copied: Path) -> None:
    record = copied / "finetune.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    with pytest.raises(StoreError, match=r"finetune\.json: is damaged.*Delete the folder"):
        finetune(new_model(), Rows(20), copied, short(), made_with={"model": "tiny"})


def test_a_folder_of_another_training_is_refused_naming_what_differs(copied: Path) -> None:
    with pytest.raises(StoreError, match=r"begun with learning_rate = 0\.01, not 0\.02"):
        finetune(new_model(), Rows(20), copied, short(learning_rate=0.02), made_with={"model": "tiny"})
    with pytest.raises(StoreError, match="begun with other rows"):
        finetune(new_model(), Rows(20, seed=1), copied, short(), made_with={"model": "tiny"})
    with pytest.raises(StoreError, match="begun with model = 'tiny', not 'other'"):
        finetune(new_model(), Rows(20), copied, short(), made_with={"model": "other"})
    other = prepare_trainable(tiny_model("llama"), lora=PLAIN, seed=5)
    with pytest.raises(StoreError, match="begun with other weights to begin from"):
        finetune(other, Rows(20), copied, short(), made_with={"model": "tiny"})


def test_what_is_not_there_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="none here"):
        Finetuned.load(tmp_path)


def test_weights_that_cannot_be_used_are_errors(tmp_path: Path) -> None:
    rows, weighted = Rows(20), short(weighted=True)
    with pytest.raises(DataError, match="row 7 has the weight -1"):
        finetune(new_model(), rows, tmp_path, weighted, weights=[1.0] * 7 + [-1.0] + [1.0] * 12)
    with pytest.raises(DataError, match="row 0 has the weight nan"):
        finetune(new_model(), rows, tmp_path, weighted, weights=[float("nan")] * 20)
    with pytest.raises(DataError, match="3 weights are given for 20 rows"):
        finetune(new_model(), rows, tmp_path, weighted, weights=[1.0] * 3)
    with pytest.raises(SettingsError, match="there are no weights"):
        finetune(new_model(), rows, tmp_path, weighted)
    with pytest.raises(SettingsError, match="set weighted=True"):
        finetune(new_model(), rows, tmp_path, short(), weights=[1.0] * 20)
    with pytest.raises(DataError, match="from 30 rows, but these are 20"):
        finetune(new_model(), rows, tmp_path, short(), selection=chosen(1, 2))
    assert not list(tmp_path.iterdir())  # nothing begun


def test_nothing_to_train_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows"):
        finetune(new_model(), Rows(0), tmp_path, short())
    with pytest.raises(ModelError, match="no trainable parameter"):
        finetune(tiny_model("llama").requires_grad_(False), Rows(8), tmp_path, short())


def test_optimizers_that_cannot_be_used_are_settings_errors(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'adamw' is not known; use one of adamw_torch, "):
        finetune(new_model(), Rows(8), tmp_path, short(optimizer="adamw"))
    with pytest.raises(SettingsError, match="'lomo' needs a training loop of its own"):
        finetune(new_model(), Rows(8), tmp_path, short(optimizer="lomo"))
    with pytest.raises(SettingsError, match="'galore_adamw' cannot be used here"):
        finetune(new_model(), Rows(8), tmp_path, short(optimizer="galore_adamw"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("max_steps", 0), ("batch_size", 0), ("micro_batch_tokens", 0), ("learning_rate", 0.0),
        ("schedule", "cubic"), ("warmup_ratio", 1.0), ("weight_decay", -1.0), ("betas", (0.9, 1.0)), ("eps", 0.0),
        ("max_grad_norm", -1.0), ("precision", "float8"),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named_with_its_value(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"fine-tuning {name} = .*must be"):
        replace(short(), **{name: value})
