"""A file is there whole or not at all, and a full disk says so."""

from __future__ import annotations

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from pursuit.errors import RunError, StoreError
from pursuit.export.subset import write_table
from pursuit.files import (
    PARTIAL,
    atomic_path,
    fingerprint,
    full_disk_told,
    read_json,
    write_json,
    write_record,
    write_tensors,
)

WRITERS = {
    "json": lambda path: write_json(path, {"a": [1] * 20_000}),
    "tensors": lambda path: write_tensors(path, {"a": torch.zeros(100_000)}, {"made": "here"}),
    "parquet": lambda path: write_table(pa.table({"a": list(range(20_000))}), path),
}


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path, kind):
    path = tmp_path / "file"
    path.write_text("before")
    os.symlink("/dev/full", tmp_path / ("file" + PARTIAL))
    with pytest.raises(RunError, match="the disk is full"):
        WRITERS[kind](path)
    assert path.read_text() == "before"


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_content_is_the_same_bytes(tmp_path, kind):
    WRITERS[kind](tmp_path / "a")
    WRITERS[kind](tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_an_interrupted_write_is_never_read(tmp_path):
    path = tmp_path / "file.json"
    with contextlib.suppress(KeyboardInterrupt), atomic_path(path) as partial:
        partial.write_text("{")
        raise KeyboardInterrupt
    assert not path.exists()
    write_json(path, {"b": 1, "a": 2})
    assert read_json(path) == {"a": 2, "b": 1}


def test_two_that_write_one_file_at_once_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with atomic_path(path) as first:
        first.write_text("first, half")
        with atomic_path(path) as second:
            assert second != first
            second.write_text("second")
        assert path.read_text() == "second"
        first.write_text("first")
    assert path.read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_writer_left_is_written_over(tmp_path):
    left = tmp_path / ("file" + PARTIAL)
    left.write_text("a longer beginning")
    with atomic_path(tmp_path / "file") as partial:
        assert partial == left
        partial.write_text("whole")
    assert (tmp_path / "file").read_text() == "whole"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_many_writers_of_the_same_files_leave_them_whole(tmp_path):
    def write(number):
        for name in range(20):
            write_tensors(tmp_path / f"{name}", {"a": torch.arange(50_000)}, {"made": "here"})
        return number

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(write, range(4))) == [0, 1, 2, 3]
    whole = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(whole) == 1
    assert len(list(tmp_path.iterdir())) == 20


def test_damaged_json_names_its_file(tmp_path):
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(StoreError, match=r"broken\.json"):
        read_json(tmp_path / "broken.json")


def test_fingerprints_ignore_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_a_record_vouches_for_its_content(tmp_path):
    path = tmp_path / "record.json"
    value = {"weights": (0.5, 0.25), "names": {1: "ä"}, "none": None}
    write_record(path, value)
    assert read_json(path) == {"weights": [0.5, 0.25], "names": {"1": "ä"}, "none": None}
    path.write_text(path.read_text().replace("0.25", "0.35"))
    with pytest.raises(StoreError, match=r"record\.json: is damaged"):
        read_json(path)


def test_a_full_disk_is_told_whoever_finds_it(tmp_path):
    text = os.strerror(errno.ENOSPC)
    for error in (OSError(errno.ENOSPC, text), Exception(f"I/O error: {text} (os error 28)")):
        with pytest.raises(RunError, match="model: the disk is full"), full_disk_told(tmp_path / "model"):
            raise error
    with pytest.raises(ValueError, match="other"), full_disk_told(tmp_path):
        raise ValueError("other")
