"""Flags and YAML of `pursuit select` and `pursuit run`: what each of them says reaches the selection, or is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from pursuit import Gtp, Run
from pursuit.errors import DataError, SelectionError, SettingsError
from pursuit.files import read_json
from pursuit.run.status import status
from pursuit.selectors import METHODS
from test_run import SMALL, run_main, write_rows
from tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a space in its name: model, pool of the sources alpha and beta, two target sets, a finished run."""
    folder = tmp_path_factory.mktemp("a place")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_rows(folder / "pool.jsonl", 60, seed=0, sources=["alpha", "beta"])
    write_rows(folder / "exam.jsonl", 4, seed=1)
    write_rows(folder / "quiz.jsonl", 4, seed=2)
    targets = [f"exam={folder / 'exam.jsonl'}", f"quiz={folder / 'quiz.jsonl'}"]
    Run(folder / "run", model=folder / "model", pool=folder / "pool.jsonl", target=targets, **SMALL).extract()
    return folder


def job(place: Path, tmp_path: Path, **values) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"run": str(place / "run"), **values}))
    return path


def last_choice(run: Path) -> dict:
    """What the newest selection of a run was made with."""
    return read_json(max(run.glob("selections/*/choice.json"), key=lambda path: path.stat().st_mtime_ns))


def test_select_takes_the_method_and_all_else_from_its_config(place, tmp_path, capsys):
    config = job(place, tmp_path, method="gtp", budget=6, params={"quotas": {"exam": 2, "quiz": 1}},
                 drop_sources="beta", out=str(tmp_path / "a b.jsonl"))  # fmt: skip
    assert run_main("select", "--config", config, capsys=capsys)[0] == 0
    table = pq.read_table(tmp_path / "a b.chosen.parquet")
    assert sorted(table["target"].to_pylist()) == ["exam"] * 4 + ["quiz"] * 2
    assert set(table["source"].to_pylist()) == {"alpha"}
    assert last_choice(place / "run")["method"] == "gtp"


def test_flags_override_every_key_of_the_yaml(place, tmp_path, capsys):
    config = job(place, tmp_path, method="gtp", budget=6, params={"quotas": {"exam": 2, "quiz": 1}},
                 drop_sources=["beta"], drop_leaks=True, out=str(tmp_path / "a.jsonl"))  # fmt: skip
    flags = ["--quota", "exam=1", "quiz=3", "--budget", 4, "--drop-source", "alpha", "--no-drop-leaks"]
    assert run_main("run", config, *flags, "--out", tmp_path / "b.jsonl", capsys=capsys)[0] == 0
    assert not (tmp_path / "a.jsonl").exists()
    table = pq.read_table(tmp_path / "b.chosen.parquet")
    assert sorted(table["target"].to_pylist()) == ["exam"] + ["quiz"] * 3
    assert set(table["source"].to_pylist()) == {"beta"}
    assert last_choice(place / "run")["drop_leaks"] is False


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"drop_source": ["alpha"]}, "did you mean drop_sources"), ({"params": ["clusters"]}, "params"),
        ({"drop_leaks": "perhaps"}, "drop_leaks = 'perhaps'"), ({"budget": [5]}, "budget"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_of_the_job_is_named(place, tmp_path, capsys, wrong, said):
    for command in (["run"], ["select", "--config"]):
        code, text = run_main(*command, job(place, tmp_path, **wrong), capsys=capsys)
        assert code == 2
        assert said in text.replace("\n", " ")


@pytest.mark.parametrize("name", ["gtp", "omp", "less", "rds"])
def test_quotas_that_do_not_fit_the_target_are_found_before_the_model_is_loaded(place, tmp_path, monkeypatch, name):
    import pursuit.run.given as module

    monkeypatch.setattr(module, "load_configured", lambda *_, **__: pytest.fail("the model was loaded"))
    new = {"model": place / "model", "pool": place / "pool.jsonl", **SMALL}
    run = Run(tmp_path / "run", target=f"exam={place / 'exam.jsonl'}", **new)
    with pytest.raises(SelectionError, match=r"quotas name 'exan', which is no target set\. Did you mean 'exam'"):
        run.select(name, 5, quotas="exan=1")
    if not METHODS[name].needs_target:
        with pytest.raises(SelectionError, match="there is no target"):
            Run(tmp_path / "other", **new).select(name, 5, quotas="exam=1")


@pytest.mark.parametrize("name", ["tagcos", "tagcos-published", "random"])
def test_quotas_are_refused_for_a_method_that_follows_no_target(place, tmp_path, capsys, name):
    flags = ["--run", place / "run", "--method", name, "--quota", "exam=1", "--out", tmp_path / "a.jsonl"]
    code, text = run_main("select", *flags, capsys=capsys)
    assert code == 2
    said = f"--quota: is for methods that follow a target (gtp, less, rds, omp); {name} takes none."
    assert said in " ".join(text.split())


def test_a_target_that_the_run_remembers_is_told_of(place, capsys):
    run = Run(place / "run")
    towards = run.select("gtp", 5).selection
    told = " ".join(capsys.readouterr().err.split())
    assert "towards the target that the run began with" in told
    assert "by --param, or as gtp(in_domain=true) in a comparison" in told
    run.select("omp", 5)
    assert "towards" not in capsys.readouterr().err, "said twice"
    assert towards.diagnostics["goal"] == "target"
    pool = Run(place / "run").select(Gtp(in_domain=True), 5).selection
    assert "towards" not in capsys.readouterr().err
    assert pool.diagnostics["goal"] == "pool"


def test_following_the_pool_needs_no_gradients_of_the_target(place, tmp_path):
    target = tmp_path / "target.jsonl"
    write_rows(target, 3, seed=12)
    before = set((place / "run").glob("targets/*/features"))
    Run(place / "run", target=target).select(Gtp(in_domain=True), 5)
    assert set((place / "run").glob("targets/*/features")) == before


def test_a_target_with_nothing_in_its_direction_is_said_plainly(tmp_path, capsys):
    np.save(tmp_path / "pool.npy", np.tile(np.eye(1, 8), (9, 1)))
    np.save(tmp_path / "target.npy", -np.eye(1, 8))
    flags = ["--features", tmp_path / "pool.npy", "--target-features", tmp_path / "target.npy"]
    code, text = run_main(
        "select", *flags, "--method", "gtp", "--budget", 3, "--out", tmp_path / "x.jsonl", capsys=capsys
    )
    assert code == 0
    assert "No row points towards the goal" in text
    assert [json.loads(line)["weight"] for line in (tmp_path / "x.jsonl").read_text().splitlines()] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["archive", "text", "scalar", "vector", "empty"])
def test_a_file_that_holds_no_features_is_named_with_what_would_be_right(tmp_path, kind):
    from pursuit.cli.commands import load_array

    path = tmp_path / "features.npy"
    arrays = {"scalar": np.float32(3), "vector": np.ones(4), "empty": np.ones((0, 4))}
    said = {"archive": r"is an archive .* \(\.npz\); save the one .* alone, by numpy\.save", "text": r"numpy\.save"}
    if kind == "archive":
        np.savez(path.with_suffix(".npz"), a=np.ones((3, 4)))
        path.with_suffix(".npz").rename(path)
    elif kind == "text":
        path.write_text('{"prompt": "x"}\n')
    else:
        np.save(path, arrays[kind])
    with pytest.raises(DataError, match=rf"features\.npy.*{said.get(kind, 'N, d')}"):
        load_array(path)


def test_what_features_of_ones_own_cannot_use_is_refused(tmp_path, capsys):
    np.save(tmp_path / "f.npy", np.eye(4))
    own = [
        "select",
        "--features",
        tmp_path / "f.npy",
        "--method",
        "random",
        "--budget",
        2,
        "--out",
        tmp_path / "x.jsonl",
    ]
    for more, said in (
        (["--run", tmp_path / "run"], "--run"), (["--drop-source", "a"], "--drop-source"), (["--model", "m"], "model"),
    ):  # fmt: skip
        code, text = run_main(*own, *more, capsys=capsys)
        assert code == 2
        assert said in text
    code, text = run_main("select", "--target-features", tmp_path / "f.npy", "--run", tmp_path / "r", capsys=capsys)
    assert code == 2
    assert "only used with --features" in text


def test_the_number_of_jobs_that_status_is_asked_about_is_at_least_one(place):
    with pytest.raises(SettingsError, match="1 or more"):
        status(place / "run", of=0)


def test_a_log_says_no_time_left_before_anything_was_done(monkeypatch, capsys):
    import pursuit.progress as module

    monkeypatch.setattr(module, "LOG_EVERY_SECONDS", 0.0)
    with module.progress("gradients", 240) as advance:
        advance(0)
        advance(60)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "gradients: 0/240 rows"
    assert second.startswith("gradients: 60/240 rows, ")
    assert second.endswith(" min left")


MISTAKES = {
    "select": ["--run", "new", "--pool", "pol.jsonl", "--model", "model"],
    "inspect": ["--pool", "pool.jsonl", "--target", "exma.jsonl", "--model", "model"],
    "run": ["no-model.yaml"],
    "finetune": ["--run", "run", "--subset", "chosne.jsonl", "--out", "out"],
    "evaluate": ["--model", "model", "--eval", "held.jsonl"],
    "warmup": ["--run", "new", "--pool", "pool.jsonl", "--max-length", "0"],
    "compare": ["--run", "run", "--methods", "random", "--budgets", "5", "--eval", "held.jsonl", "--out", "out"],
}


@pytest.mark.parametrize("command", MISTAKES)
def test_who_mistyped_something_does_not_wait_for_torch(place, command):
    (place / "no-model.yaml").write_text("run: new\nmodel: ./modle\npool: pool.jsonl\n")
    told = "try:\n main()\nexcept SystemExit:\n print([name in sys.modules for name in ('torch', 'transformers')])"
    call = [sys.executable, "-c", f"import sys\nfrom pursuit.cli import main\n{told}", command, *MISTAKES[command]]
    done = subprocess.run(call, cwd=place, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[False, False]"
    assert re.search(r"error: .*(no such file|max_length|max-length|no such folder)", done.stderr)
    assert not (place / "new").exists()
