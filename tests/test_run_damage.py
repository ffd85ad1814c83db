"""What is damaged in a run folder is made again or refused by name; never taken as it is."""

from __future__ import annotations

import shutil

import pytest

from pursuit import Run
from pursuit.errors import PursuitError, StoreError
from test_run import SMALL, place, write_rows  # noqa: F401  (place is a fixture)

CHANGES = {
    "features/manifest.json": ('"shard_rows": 16', '"shard_rows": 15'),
    "warmup/checkpoint-0002/checkpoint.json": ('"eps": 1e-08', '"eps": 1e-04'),
    "warmup/warmup.json": ('"checkpoint_steps": [\n', '"checkpoint_steps": [\n    1,\n'),
    "encoded/manifest.json": ('"tokens": 1654\n}', '"tokens": 1655\n}'),
    "encoded/encoding.json": ('"max_length": 2048', '"max_length": 2047'),
    "encoded/shard-00000.json": ('"count": 40', '"count": 39'),
}


@pytest.fixture(scope="module")
def whole(place):  # noqa: F811
    """A finished run of 40 rows, and what it chose."""
    write_rows(place / "forty.jsonl", 40, seed=3)
    run = Run(place / "whole", model=place / "model", pool=place / "forty.jsonl", **SMALL)
    return run, run.select("tagcos", 8, clusters=3, out=place / "whole.jsonl").subset.read_bytes()


def chosen(folder, out):
    return Run(folder).select("tagcos", 8, clusters=3, out=out).subset.read_bytes()


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_record_never_changes_a_choice(whole, tmp_path, name):
    run, subset = whole
    shutil.copytree(run.folder.path, tmp_path / "run")
    path, (before, after) = tmp_path / "run" / name, CHANGES[name]
    assert path.read_text().count(before) == 1
    path.write_text(path.read_text().replace(before, after))
    try:
        found = chosen(tmp_path / "run", tmp_path / "out.jsonl")
    except PursuitError as error:
        assert path.name in str(error)  # noqa: PT017
    else:
        assert found == subset
    path.unlink()  # as the message says
    if "checkpoint" not in name:
        assert chosen(tmp_path / "run", tmp_path / "out.jsonl") == subset


def test_weights_of_checkpoints_that_were_changed_are_not_used(whole, tmp_path):
    run, _ = whole
    shutil.copytree(run.folder.path, tmp_path / "run")
    path = tmp_path / "run" / "features" / "manifest.json"
    path.write_text(path.read_text().replace('"weights": [\n    0.', '"weights": [\n    0.1'))
    with pytest.raises(StoreError, match=r"features/manifest\.json: is damaged"):
        chosen(tmp_path / "run", tmp_path / "out.jsonl")


def test_tokens_without_their_settings_are_made_again(whole, tmp_path):
    """A folder that was half removed may hold another file's rows."""
    run, subset = whole
    shutil.copytree(run.folder.path, tmp_path / "run")
    encoded = tmp_path / "run" / "encoded"
    for name in ("encoding.json", "manifest.json"):
        (encoded / name).unlink()
    before = (encoded / "00000.safetensors").stat().st_mtime_ns
    assert chosen(tmp_path / "run", tmp_path / "out.jsonl") == subset
    assert (encoded / "00000.safetensors").stat().st_mtime_ns != before


def test_appended_rows_do_not_vanish_with_the_list_of_them(whole, tmp_path):
    run, _ = whole
    shutil.copytree(run.folder.path, tmp_path / "run")
    write_rows(tmp_path / "more.jsonl", 10, seed=4)
    opened = Run(tmp_path / "run")
    Run(tmp_path / "run").extract(append=tmp_path / "more.jsonl")
    assert len(opened.select("random", 50, out=tmp_path / "all.jsonl").selection) == 50, "opened before they joined"
    (tmp_path / "run" / "parts.json").unlink()
    with pytest.raises(StoreError, match=r"parts\.json: is missing"):
        Run(tmp_path / "run")


def test_timings_that_are_no_numbers_stop_nothing(whole, tmp_path):
    run, subset = whole
    shutil.copytree(run.folder.path, tmp_path / "run")
    (tmp_path / "run" / "timings.json").write_text('{"features": null}')
    assert chosen(tmp_path / "run", tmp_path / "out.jsonl") == subset


def test_a_damaged_table_beside_a_subset_is_written_anew(whole, tmp_path):
    run, subset = whole
    shutil.copytree(run.folder.path, tmp_path / "run")
    (tmp_path / "out.chosen.parquet").write_bytes(b"PAR1 half")
    assert chosen(tmp_path / "run", tmp_path / "out.jsonl") == subset
