"""What of `name=path` is a name, and that files are closed when they have been read."""

from __future__ import annotations

import gzip
import lzma
import os
from pathlib import Path

import pytest
import zstandard

from pursuit.pool import Pool
from pursuit.pool.readers import open_bytes
from pursuit.pool.sources import split_name
from pursuit.run.run import _plain

LINE = b'{"text": "x"}\n'


@pytest.fixture
def partitioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which `lr=1/a.jsonl` and `1/a.jsonl` stand."""
    for name in ("lr=1", "1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_bytes(LINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "name", "path"),
    [
        ("lr=1/a.jsonl", None, "lr=1/a.jsonl"), ("lr=*/a.jsonl", None, "lr=*/a.jsonl"),
        ("exam=lr=1/a.jsonl", "exam", "lr=1/a.jsonl"), ("exam=lr=*/a.jsonl", "exam", "lr=*/a.jsonl"),
        ("exam=1/a.jsonl", "exam", "1/a.jsonl"), ("exam=gone.jsonl", "exam", "gone.jsonl"),
    ],
)  # fmt: skip
def test_an_equals_sign_of_a_path_or_pattern_makes_no_name(
    partitioned: Path, given: str, name: str | None, path: str
) -> None:
    assert split_name(given) == (name, path)
    wanted = f"{name}=" * bool(name) + str(partitioned / path)
    if "gone" not in given:
        assert _plain({"pool": given})["pool"] == [wanted]
        assert [example.source for example in Pool(given)] == [name or "a"]


def test_files_of_one_stem_are_one_source_unless_they_are_named(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "train.jsonl").write_bytes(LINE)
    (tmp_path / "b" / "train.jsonl.gz").write_bytes(gzip.compress(LINE))
    paths = [tmp_path / "a" / "train.jsonl", tmp_path / "b" / "train.jsonl.gz"]
    assert [example.source for example in Pool(paths)] == ["train", "train"]
    assert [example.source for example in Pool([paths[0], f"b={paths[1]}"])] == ["train", "b"]


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("xz", lzma.compress), ("zst", zstandard.compress)]
)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files")
def test_a_packed_file_is_closed_with_its_reader(tmp_path: Path, ending: str, pack) -> None:
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(pack(LINE))
    before = set(os.listdir("/proc/self/fd"))
    reader = open_bytes(str(path))
    assert reader.read() == LINE
    assert len(os.listdir("/proc/self/fd")) > len(before)
    reader.close()
    assert reader.closed
    assert set(os.listdir("/proc/self/fd")) == before
