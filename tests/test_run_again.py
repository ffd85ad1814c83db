"""Starting again: what may still change, what it is said to have taken, and whose files are whose."""

from __future__ import annotations

import json
import sys
import time

import pytest

from pursuit import Run
from pursuit.cli import main
from pursuit.errors import ModelError, RunError, SettingsError
from pursuit.run import timings
from test_run import SMALL, finished, place, write_rows  # noqa: F401


def command(*arguments):
    """Its exit status."""
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(list(map(str, arguments))))
    return ended.value.code or 0


def test_settings_of_later_stages_may_change_while_only_tokens_stand(place, tmp_path):  # noqa: F811
    given = {"model": place / "model", "pool": place / "pool.jsonl", **SMALL}
    with pytest.raises(ModelError, match="nosuch"):
        Run(tmp_path / "run", **{**given, "lora": {"rank": 4, "targets": ["nosuch"]}}).warmup()
    with pytest.raises(RunError, match="max_length"):
        Run(tmp_path / "run", **given, max_length=100)
    Run(tmp_path / "run", lora={"rank": 3, "targets": ["q_proj"]}).warmup()
    again = Run(tmp_path / "run")
    assert (again.settings.lora.rank, again.settings.lora.targets) == (3, ["q_proj"])
    with pytest.raises(RunError, match=r"lora\.rank: the run has 3, now 4"):
        Run(tmp_path / "run", lora={"rank": 4})


def test_what_the_warmup_cannot_use_is_said_before_anything_is_written(place, tmp_path):  # noqa: F811
    with pytest.raises(SettingsError, match="sample"):
        Run(tmp_path / "run", model=place / "model", pool=place / "pool.jsonl", warmup={"sample": 1.5})
    assert not (tmp_path / "run").exists()


def test_the_sample_may_be_a_number_of_rows_by_flag(place, tmp_path, capsys):  # noqa: F811
    flags = ["--warmup.batch-size", "8", "--warmup.checkpoint-steps", "2", "--lora.rank", "2", "--warmup.sample", "24"]
    wanted = ["--model", str(place / "model"), "--pool", str(place / "pool.jsonl"), "--run", str(tmp_path / "run")]
    assert command("warmup", *wanted, *flags) == 0, capsys.readouterr()
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["warmup"]["sample"] == 24
    assert json.loads((tmp_path / "run" / "warmup" / "warmup.json").read_text())["sampled_rows"] == 24


def test_looking_again_at_what_stands_takes_no_time(place, finished):  # noqa: F811
    run, _ = finished
    costs = []
    for seed in range(3):
        costs.append(Run(place / "run").select("gtp", 5, seed=seed).cost["selection_seconds"])
    before = run.folder.timings()
    Run(place / "run").select("tagcos", 5, clusters=2)
    assert run.folder.timings() == before
    stages = sum(before[name] for name in ("encode", "warm-up", "features"))
    assert all(stages <= cost < stages + 10 for cost in costs)


def test_each_target_has_the_time_of_its_own(place, tmp_path, finished):  # noqa: F811
    write_rows(tmp_path / "other.jsonl", 5, seed=3)
    first, second = Run(place / "run"), Run(place / "run", target=tmp_path / "other.jsonl")
    first.select("less", 5)
    held = first.stages.timings()["target"]
    second.select("less", 5)
    assert second.stages.timings()["target"] > 0
    assert first.stages.timings()["target"] == held


def test_the_time_of_a_killed_start_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(timings, "EVERY_SECONDS", 0.05)
    kept = timings.Timings(tmp_path)
    with kept.of("features"):
        time.sleep(0.3)
        while_at_work = kept.read()["features"]
    assert 0.1 < while_at_work <= kept.read()["features"]
    first = kept.read()["features"]
    with timings.Timings(tmp_path, "1-of-2").of("features"), kept.of("encode"), kept.of("features"):
        time.sleep(0.2)
    total = timings.added_up(tmp_path)
    assert total["features"] >= first + 0.4
    assert total["encode"] >= 0.2


def test_subsets_that_differ_by_their_ending_do_not_share_a_table(finished, tmp_path):  # noqa: F811
    run, _ = finished
    run.select("tagcos", 5, clusters=2, out=tmp_path / "a.jsonl")
    with pytest.raises(SettingsError, match=r"take the place of a\.jsonl's \(a\.chosen\.parquet\)"):
        run.select("random", 5, out=tmp_path / "a.jsonl.gz")
    run.select("random", 5, out=tmp_path / "a.jsonl")  # the same one, made anew
    (tmp_path / "a.jsonl").unlink()
    run.select("random", 6, out=tmp_path / "a.jsonl.gz")


def test_another_method_than_the_files_has_no_use_for_its_parameters(place, finished, tmp_path, capsys):  # noqa: F811
    job = f"run: {place / 'run'}\nmethod: tagcos\nbudget: 6\nparams: {{clusters: 3}}\n"
    (tmp_path / "job.yaml").write_text(job)
    assert command("select", "--config", str(tmp_path / "job.yaml"), "--method", "random") == 0, capsys.readouterr()
    assert command("select", "--config", str(tmp_path / "job.yaml"), "--param", "clusters=2") == 0, capsys.readouterr()
    assert command("select", "--config", str(tmp_path / "job.yaml"), "--method", "random", "--param", "x=1") == 2


def test_fewer_rows_than_clusters_is_said(finished):  # noqa: F811
    run, _ = finished
    with pytest.warns(UserWarning, match="a budget of 4 rows for 9 clusters: 5 of them get none"):
        run.select("tagcos", 4, clusters=9)


def test_selections_of_one_method_are_told_apart(place, finished, capsys):  # noqa: F811
    run, _ = finished
    run.select("gtp", 7, in_domain=True)
    run.select("gtp", 7, seed=3, drop_sources=["a"])
    assert command("status", "--run", place / "run") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "7 rows, seed 0, in_domain=True" in shown
    assert "7 rows, seed 3, target target.jsonl, without a" in shown
    assert command("report", "--run", place / "run", "--selection", "gtp-7") == 2
    assert "in_domain=True" in " ".join(capsys.readouterr().err.split())


def test_rows_that_cannot_be_used_are_told_of_before_and_after(place, tmp_path, capsys):  # noqa: F811
    """The reader's and the encoder's refusals alike: how to go on, and that some were left out."""
    write_rows(tmp_path / "pool.jsonl", 30, seed=4)
    for bad in ('{"prompt": "sea"}', json.dumps({"prompt": "sea " * 300, "response": "wind"})):
        rows = (tmp_path / "pool.jsonl").read_text() + bad + "\n"
        (tmp_path / "bad.jsonl").write_text(rows)
        flags = ["--model", place / "model", "--pool", tmp_path / "bad.jsonl", "--run", tmp_path / str(len(bad))]
        asked = ["select", *flags, "--method", "random", "--budget", "4", "--max-length", "200"]
        assert command(*asked) == 2
        assert "line 31" in (told := " ".join(capsys.readouterr().err.split()))
        assert "--on-bad-row skip leaves such rows out" in told
        assert command(*asked, "--on-bad-row", "skip", "--out", tmp_path / "few.jsonl") == 0
        capsys.readouterr()
        assert "1 rows (3.2% of all) could not be used" in (tmp_path / "few.report.html").read_text()
