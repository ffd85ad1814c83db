"""Selecting from one run in many ways: sources left out, leaks found and left out, several targets with quotas."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from pursuit import Gtp, Run, Tagcos
from pursuit.errors import SelectionError
from test_run import SMALL, place, run_main, write_rows  # noqa: F401  (place is a fixture)


@pytest.fixture(scope="module")
def made(place):  # noqa: F811
    """A run whose target set holds three rows of the pool, one of them with another response."""
    folder = place / "select"
    folder.mkdir()
    lines = write_rows(folder / "pool.jsonl", 90, seed=3)
    stolen = [json.loads(lines[row]) for row in (10, 20, 30)]
    stolen[2]["response"] = "something else"
    exam = write_rows(folder / "exam.jsonl", 6, seed=4)
    (folder / "exam.jsonl").write_bytes(b"\n".join(exam + [json.dumps(row).encode() for row in stolen]) + b"\n")
    write_rows(folder / "quiz.jsonl", 5, seed=5)
    exam_only = [f"exam={folder}/exam.jsonl"]
    run = Run(folder / "run", model=place / "model", pool=folder / "pool.jsonl", target=exam_only, **SMALL)
    run.extract()
    return run, folder


def test_leaks_are_told_of_and_left_out_when_asked(made):
    run, _ = made
    with pytest.warns(UserWarning, match=r"3 of 90 rows of the pool stand in the target set exam \(1 of them"):
        told = run.select("less", 80)
    assert {10, 20, 30} <= set(told.selection.indices.tolist())
    assert "stand in the target set exam" in told.report.read_text()
    with pytest.warns(UserWarning, match="they are left out"):
        left_out = run.select("less", "100%", drop_leaks=True).selection
    assert sorted(left_out.indices.tolist()) == [row for row in range(90) if row not in (10, 20, 30)]


@pytest.mark.filterwarnings("ignore:.*stand in the target")
def test_a_source_left_out_is_as_if_it_were_not_in_the_pool(made, place):  # noqa: F811
    run, folder = made
    lines = (folder / "pool.jsonl").read_bytes().splitlines()
    result = run.select(Tagcos(clusters=3), "20%", drop_sources=["b"], out=folder / "without-b.jsonl")
    kept = [line for line in lines if json.loads(line)["source"] != "b"]
    assert len(result.selection) == round(0.2 * len(kept))
    assert result.subset.read_bytes().splitlines() == [lines[index] for index in result.selection.indices]
    assert set(pq.read_table(result.table)["source"].to_pylist()) == {"a", "c"}
    with pytest.raises(SelectionError, match=r"'bb' is no source of the pool\. Did you mean 'b'"):
        run.select("random", 5, drop_sources=["bb"])


@pytest.mark.filterwarnings("ignore:.*stand in the target")
def test_several_targets_get_their_quotas(made):
    run, folder = made
    again = Run(run.folder.path, target=[f"exam={folder}/exam.jsonl", f"quiz={folder}/quiz.jsonl"])
    result = again.select(Gtp(quotas={"exam": 2, "quiz": 1}), 30)
    assert len(set(result.selection.indices.tolist())) == 30
    assert result.selection.columns["target"].tolist().count(0) == 20


@pytest.mark.filterwarnings("ignore:.*stand in the target")
def test_the_same_by_the_command_line(made, capsys):
    run, folder = made
    out = folder / "by-command.jsonl"
    command = ("select", "--run", run.folder.path, "--method", "gtp", "--budget", 12, "--out", out)
    targets = ("--target", f"exam={folder}/exam.jsonl", f"quiz={folder}/quiz.jsonl")
    left_out = ("--drop-source", "a", "--drop-leaks")
    code, text = run_main(*command, *targets, *left_out, "--quota", "exam=1", "quiz=3", capsys=capsys)
    assert code == 0, text
    chosen = [json.loads(line) for line in out.read_bytes().splitlines()]
    assert len(chosen) == 12
    assert {row["source"] for row in chosen} <= {"b", "c"}
    code, text = run_main(*command, *targets, "--quota", "nothing=1", capsys=capsys)
    assert (code, "nothing" in text) == (2, True)


@pytest.mark.filterwarnings("ignore:.*stand in the target")
def test_the_report_is_made_again_with_the_agreement(made, tmp_path, capsys):
    run, _ = made
    result = run.select(Tagcos(clusters=3), 13, seed=5, drop_sources=["b"], out=tmp_path / "subset.jsonl")
    before = result.report.read_text()
    name = next(path.parent.name for path in run.folder.selections.glob("tagcos-13-*/choice.json"))
    assert Run(run.folder.path).report(name) == result.report
    assert "Agreement" not in before
    command = ("report", "--run", run.folder.path, "--selection", name, "--agreement", "--price-per-hour", 2.5)
    code, text = run_main(*command, "--out", tmp_path / "again.html", capsys=capsys)
    assert code == 0, text
    again = (tmp_path / "again.html").read_text()
    assert "another seed" in again.lower()
    code, text = run_main("report", "--run", tmp_path / "nowhere", capsys=capsys)
    assert (code, "no run is in this folder" in " ".join(text.split())) == (2, True)


@pytest.mark.filterwarnings("ignore:.*stand in the target")
def test_the_cost_is_that_of_this_selection_alone(made):
    run, _ = made
    first, second = (run.select("random", 5, seed=seed).cost["selection_seconds"] for seed in (1, 2))
    assert second < 2 * first + 1, "the time of earlier selections was counted again"
