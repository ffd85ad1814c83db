"""A store on object storage: what one machine finishes, another finds; what is damaged there is made again."""

from __future__ import annotations

import shutil

import fsspec
import pytest

from pursuit import Run
from pursuit.errors import SettingsError
from pursuit.store.mirror import Mirror
from test_jobs import new_run, shards
from test_run import place  # noqa: F401  (a fixture)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_another_machine_takes_its_gradients_from_there(place, tmp_path, kind, monkeypatch):  # noqa: F811
    url = f"memory://{tmp_path.name}/store" if kind == "memory" else f"file://{tmp_path}/store"
    here = new_run(place, tmp_path / "here", store=url)
    here.extract()
    made = shards(here.folder.features)
    files, root = fsspec.core.url_to_fs(url)
    assert len(files.find(root)) == len(made) == 16
    there = tmp_path / "there"
    shutil.copytree(tmp_path / "here", there, ignore=shutil.ignore_patterns("checkpoint-0?"))
    assert not shards(there / "features")
    monkeypatch.setattr(
        "pursuit.run.given.load_configured", lambda *_, **__: pytest.fail("gradients were computed again")
    )
    Run(there).extract()
    assert shards(there / "features") == made


def test_what_is_damaged_there_is_made_again(place, tmp_path):  # noqa: F811
    run = new_run(place, tmp_path / "run", store=f"file://{tmp_path}/store")
    run.extract()
    made = shards(run.folder.features)
    copy = next((tmp_path / "store").rglob("00003.safetensors"))
    original = copy.read_bytes()
    copy.write_bytes(original[:100])
    shutil.rmtree(run.folder.features / "checkpoint-00")
    shutil.rmtree(run.folder.features / "checkpoint-01")
    Run(tmp_path / "run").extract()
    assert shards(run.folder.features) == made
    assert copy.read_bytes() == original, "the damaged copy was not replaced"


def test_a_url_that_cannot_be_used_is_named(place, tmp_path):  # noqa: F811
    with pytest.raises(SettingsError, match="nonsense://bucket"):
        Mirror("nonsense://bucket")
    with pytest.raises(SettingsError, match="nonsense://bucket"):
        new_run(place, tmp_path / "run", store="nonsense://bucket")


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_what_is_gone_since_it_was_listed_is_not_there(tmp_path, kind):
    url = f"memory://{tmp_path.name}/gone" if kind == "memory" else f"file://{tmp_path}/gone"
    here = tmp_path / "shard.safetensors"
    here.write_bytes(b"content")
    mirror = Mirror(url)
    mirror.push(here, "shard.safetensors")
    here.unlink()
    mirror.files.rm(f"{mirror.root}/shard.safetensors")
    assert not mirror.pull("shard.safetensors", here)
    assert list(tmp_path.glob("shard*")) == []
