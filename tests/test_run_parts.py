"""A run that grows: appended rows cost only their own gradients, and the rest sees one pool."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from pursuit import Run, Tagcos
from pursuit.errors import DataError, RunError
from pursuit.gradients import extract as extraction
from test_run import SMALL, place, run_main, write_rows  # noqa: F401  (place is a fixture)


@pytest.fixture
def grown(place, tmp_path):  # noqa: F811
    """A run on 40 rows (one of them refused), and 30 more appended."""
    first, second = write_rows(tmp_path / "a.jsonl", 40, seed=1), write_rows(tmp_path / "b.jsonl", 30, seed=2)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([first[0], b'{"prompt": 3}', *first[1:]]) + b"\n")
    run = Run(tmp_path / "run", model=place / "model", pool=tmp_path / "a.jsonl", on_bad_row="skip", **SMALL)
    run.extract()
    return run, first + second, tmp_path


def test_appended_rows_join_the_pool_in_order(grown):
    run, lines, folder = grown
    features = run.extract(append=folder / "b.jsonl")
    assert features.num_rows == 70
    assert features.rows["index"].to_pylist() == list(range(70))
    result = run.select(Tagcos(clusters=3), budget=20, out=folder / "subset.jsonl")
    assert result.subset.read_bytes().splitlines() == [lines[index] for index in result.selection.indices]
    assert max(result.selection.indices) >= 40, "nothing was chosen of the appended rows"
    table = pq.read_table(result.table)
    for index, path, line in zip(*(table[name].to_pylist() for name in ("index", "path", "line")), strict=True):
        text = Path(path).read_bytes().splitlines()[line - 1]
        assert text == lines[index]


def test_appending_computes_only_what_is_new(grown, monkeypatch):
    run, _, folder = grown
    before = {path: path.stat().st_mtime_ns for path in run.folder.features.rglob("*") if path.is_file()}
    seen = []
    original = extraction.extract

    def watched(model, trajectory, encoded, *rest, **more):
        seen.append(len(encoded))
        return original(model, trajectory, encoded, *rest, **more)

    monkeypatch.setattr("pursuit.run.stages.extract", watched)
    run.extract(append=folder / "b.jsonl")
    assert seen == [30]
    assert before == {path: path.stat().st_mtime_ns for path in run.folder.features.rglob("*") if path.is_file()}


def test_appended_gradients_are_those_of_the_same_checkpoints(grown, place):  # noqa: F811
    """The same rows, appended twice under two names, have the same features."""
    run, _, folder = grown
    (folder / "c.jsonl").write_bytes((folder / "b.jsonl").read_bytes())
    run.extract(append=folder / "b.jsonl")
    features = run.extract(append=folder / "c.jsonl")
    for number in range(features.num_checkpoints):
        rows = features.checkpoint(number)[:]
        assert torch.equal(torch.from_numpy(rows[40:70]), torch.from_numpy(rows[70:100]))
    assert Run(folder / "run").extract().num_rows == 100


def test_appending_twice_is_appending_once(grown, capsys):
    run, _, folder = grown
    run.extract(append=folder / "b.jsonl")
    capsys.readouterr()
    assert run.extract(append=[folder / "b.jsonl"]).num_rows == 70
    shown = "".join(capsys.readouterr().err.split())  # a long path is broken anywhere
    assert "b.jsonl:alreadyinthisrun,nothingisappended" in shown
    with pytest.raises(RunError, match=r"a\.jsonl: already in this run"):
        run.extract(append=folder / "a.jsonl")
    with pytest.raises(DataError, match="missing"):
        run.extract(append=folder / "missing.jsonl")
    assert Run(folder / "run").extract().num_rows == 70


def test_a_file_that_cannot_be_used_does_not_join_the_run(place, tmp_path):  # noqa: F811
    """Otherwise nothing could be selected from the run any more."""
    lines = write_rows(tmp_path / "a.jsonl", 30, seed=1)
    run = Run(tmp_path / "run", model=place / "model", pool=tmp_path / "a.jsonl", **SMALL)
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join([*lines[:5], b'{"prompt": "x"']))
    with pytest.raises(DataError, match=r"bad\.jsonl, line 6"):
        run.extract(append=tmp_path / "bad.jsonl")
    assert Run(tmp_path / "run").select("random", 30).selection.num_rows == 30
    write_rows(tmp_path / "good.jsonl", 7, seed=2)
    run = Run(tmp_path / "run")
    assert run.extract(append=tmp_path / "good.jsonl").num_rows == 37
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join(lines[:5]))
    assert run.extract(append=tmp_path / "bad.jsonl").num_rows == 42


def test_the_command_line_appends_and_exports_an_earlier_selection(grown, capsys):
    run, _, folder = grown
    earlier = run.select("random", 10, seed=1).selection
    code, shown = run_main("extract", "--run", folder / "run", "--append", folder / "b.jsonl", capsys=capsys)
    assert (code, "70 rows" in shown) == (0, True)
    exported = ("export", "--run", folder / "run", "--to", "messages", "--out", folder / "out.jsonl")
    assert run_main(*exported, capsys=capsys)[0] == 0
    assert len((folder / "out.jsonl").read_text().splitlines()) == len(earlier)


def test_bad_rows_of_an_appended_file_can_be_skipped_from_then_on(place, tmp_path, capsys):  # noqa: F811
    write_rows(tmp_path / "a.jsonl", 20, seed=1)
    lines = write_rows(tmp_path / "b.jsonl", 10, seed=2)
    (tmp_path / "b.jsonl").write_bytes(b"\n".join([lines[0], b'{"prompt": 3}', *lines[1:]]) + b"\n")
    Run(tmp_path / "run", model=place / "model", pool=tmp_path / "a.jsonl", **SMALL).extract()
    append = ("extract", "--run", tmp_path / "run", "--append", tmp_path / "b.jsonl")
    code, text = run_main(*append, capsys=capsys)
    assert code == 2, text
    assert "b.jsonl, line 2" in " ".join(text.split())
    assert "--on-bad-row skip" in text
    code, text = run_main(*append, "--on-bad-row", "skip", capsys=capsys)
    assert code == 0, text
    run = Run(tmp_path / "run")
    assert run.extract().num_rows == 30
    assert [refusal.line for refusal in run.encode().refused] == [2]
    with pytest.raises(RunError, match="on_bad_row: the run has 'skip', now 'error'"):
        Run(tmp_path / "run", on_bad_row="error")


def test_a_failed_append_changes_no_setting(place, tmp_path, capsys):  # noqa: F811
    write_rows(tmp_path / "a.jsonl", 20, seed=1)
    (tmp_path / "bad.jsonl").write_bytes(b'{"prompt": 3}\n')
    Run(tmp_path / "run", model=place / "model", pool=tmp_path / "a.jsonl", **SMALL).extract()
    before = (tmp_path / "run" / "settings.json").read_bytes()
    append = ("extract", "--run", tmp_path / "run", "--append", tmp_path / "bad.jsonl", "--on-bad-row", "skip")
    assert run_main(*append, capsys=capsys)[0] == 2
    assert (tmp_path / "run" / "settings.json").read_bytes() == before
