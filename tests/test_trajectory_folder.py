"""What a warm-up leaves in its folder, what is taken up again, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from pursuit.errors import ModelError, SettingsError, StoreError
from pursuit.models.loading import Lora, prepare_trainable, trainable_parameters
from pursuit.warmup import warm_up
from pursuit.warmup.trajectory import Trajectory
from test_trajectory import PLAIN, Rows, adapted, short
from tiny import tiny_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("warmup") / "run"
    warm_up(adapted(), Rows(20), folder, short())
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_nothing_trainable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="prepare_trainable"):
        warm_up(tiny_model("llama").requires_grad_(False), Rows(8), tmp_path, short())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoint_steps", ()), ("checkpoint_steps", (2, 2)), ("checkpoint_steps", (0, 1)), ("epochs", 0),
        ("sample", 0.0), ("sample", 1.5), ("sample", 0), ("learning_rate", 0.0), ("schedule", "cubic"),
        ("warmup_ratio", 1.0), ("weight_decay", -1.0), ("betas", (0.9, 1.0)), ("eps", 0.0), ("max_grad_norm", -1.0),
        ("batch_size", 0), ("micro_batch_tokens", 0),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named_with_its_value(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"{name} = .*must be"):
        short(**{name: value})


def test_only_safetensors_and_json_are_written(finished: Path) -> None:
    assert {path.suffix for path in finished.rglob("*") if path.is_file()} == {".safetensors", ".json"}
    assert sorted(path.name for path in finished.iterdir()) == ["checkpoint-0001", "checkpoint-0003", "warmup.json"]


def test_a_checkpoint_loads_into_a_fresh_model(finished: Path) -> None:
    trained, fresh = adapted(), adapted()
    trajectory = warm_up(trained, Rows(20), finished, short())  # finished before: nothing is trained again
    trajectory.load_into(fresh, 1)
    for name, parameter in trainable_parameters(fresh).items():
        assert torch.equal(parameter, trainable_parameters(trained)[name])
        assert parameter.requires_grad
    trajectory.load_into(fresh, 0)
    other = trainable_parameters(fresh)
    assert any(not torch.equal(parameter, other[name]) for name, parameter in trainable_parameters(trained).items())


def test_a_finished_warm_up_is_not_trained_again(copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    warm_up(adapted(), Rows(20), copied, short(recovery_seconds=0.0))
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_a_folder_begun_with_something_else_is_refused_naming_it(copied: Path) -> None:
    with pytest.raises(StoreError, match=r"begun with learning_rate = 0\.01, not 0\.02"):
        warm_up(adapted(), Rows(20), copied, short(learning_rate=0.02))
    with pytest.raises(StoreError, match="begun with other rows"):
        warm_up(adapted(), Rows(20, seed=1), copied, short())
    with pytest.raises(StoreError, match="begun with other weights to begin from"):
        warm_up(prepare_trainable(tiny_model("llama"), lora=PLAIN, seed=5), Rows(20), copied, short())


def test_remains_of_other_settings_are_never_part_of_a_trajectory(copied: Path, tmp_path: Path) -> None:
    (copied / "checkpoint-0001" / "weights.safetensors").unlink()  # nothing left to resume from; 0003 is still whole
    clean = warm_up(adapted(), Rows(20), tmp_path / "clean", short(seed=3))
    mixed = warm_up(adapted(), Rows(20), copied, short(seed=3))
    assert [c.sha256 for c in mixed.checkpoints] == [c.sha256 for c in clean.checkpoints]


@pytest.mark.parametrize("file", ["weights.safetensors", "moments.safetensors"])
def test_damage_is_found_and_the_warm_up_repairs_it(file: str, copied: Path, finished: Path) -> None:
    damaged = copied / "checkpoint-0003" / file
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    trajectory = Trajectory(copied)
    with pytest.raises(StoreError, match=rf"checkpoint-0003/{file}: damaged"):
        trajectory.verify()
    with pytest.raises(StoreError, match="damaged"):
        trajectory.load_into(adapted(), 1) if file.startswith("weights") else trajectory.moments(1)
    warm_up(adapted(), Rows(20), copied, short()).verify()
    assert damaged.read_bytes() == whole


def test_missing_parts_are_store_errors(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no warm-up here"):
        Trajectory(tmp_path)
    trajectory = Trajectory(copied)
    (copied / "checkpoint-0003" / "moments.safetensors").unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        trajectory.moments(1)
    (copied / "checkpoint-0003" / "checkpoint.json").write_text('{"step": 3')
    with pytest.raises(StoreError, match=r"checkpoint\.json"):
        Trajectory(copied)
    (copied / "checkpoint-0003" / "checkpoint.json").unlink()
    with pytest.raises(StoreError, match="1 of 2 checkpoints"):
        Trajectory(copied)


def test_a_checkpoint_of_other_parameters_is_refused(finished: Path) -> None:
    for other in (adapted(lora=Lora(rank=2)), adapted("gpt2")):
        with pytest.raises(StoreError, match="other parameters"):
            Trajectory(finished).load_into(other, 0)
