"""The main road, through the command line and through Python: pool to subset, reuse, refusal, and being killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pursuit import Run, Tagcos
from pursuit.cli import main
from pursuit.errors import ModelError, RunError, SelectionError, SettingsError
from tiny import tiny_model, tiny_tokenizer

WORDS = "the capital of france is paris rome italy answer question apple sea wind poem count letters good day".split()
SMALL = {
    "features": {"dimension": 64, "shard_rows": 16, "batch_tokens": 512}, "lora": {"rank": 4, "alpha": 8},
    "warmup": {"batch_size": 8, "checkpoint_steps": [2, 4], "learning_rate": 1e-3},
}  # fmt: skip


def write_rows(path: Path, count: int, seed: int, sources="abc") -> list[bytes]:
    generator = random.Random(seed)
    lines = []
    for _ in range(count):
        row = {
            "source": generator.choice(sources),
            "prompt": " ".join(generator.choices(WORDS, k=generator.randint(2, 20))),
            "response": " ".join(generator.choices(WORDS, k=generator.randint(1, 12))),
            "ünïcode": "é\u2028 kept",
        }
        lines.append(json.dumps(row, ensure_ascii=generator.random() < 0.5, indent=None).encode())
    path.write_bytes(b"\n".join(lines) + b"\n")
    return lines


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_rows(folder / "pool.jsonl", 120, seed=0)
    write_rows(folder / "target.jsonl", 8, seed=1, sources=["one", "two"])
    return folder


@pytest.fixture(scope="module")
def finished(place):
    """A run with its features, made through Python."""
    run = Run(place / "run", model=place / "model", pool=place / "pool.jsonl", target=place / "target.jsonl", **SMALL)
    return run, run.select(Tagcos(clusters=4), budget="10%", out=place / "subset.jsonl")


def test_a_run_is_told_by_its_folder_and_model(place, finished):
    assert repr(finished[0]) == f"Run({str(place / 'run')!r}, model={str(place / 'model')!r})"


def test_the_subset_holds_original_rows_in_order_of_choice(place, finished):
    _, result = finished
    pool = (place / "pool.jsonl").read_bytes().splitlines()
    assert result.subset.read_bytes().splitlines() == [pool[index] for index in result.selection.indices]
    table = pq.read_table(result.table)
    assert table["index"].to_pylist() == result.selection.indices.tolist()
    assert table["line"].to_pylist() == [index + 1 for index in result.selection.indices]
    assert table["rank"].to_pylist() == list(range(1, 13))
    assert {"weight", "cluster", "score", "loss", "gradient_norm", "source"} <= set(table.column_names)
    assert np.isfinite(table["loss"].to_numpy()).all()
    assert "<html" in result.report.read_text()


def test_selecting_again_uses_the_same_features(place, finished, monkeypatch):
    import pursuit.run.given as module

    monkeypatch.setattr(module, "load_configured", lambda *_, **__: pytest.fail("the model was loaded again"))
    run = Run(place / "run")
    again = run.select("tagcos", "10%", clusters=4, out=place / "again.jsonl")
    assert again.subset.read_bytes() == finished[1].subset.read_bytes()
    drawn = run.select("random", 7, seed=3, out=place / "random.jsonl")
    assert len(drawn.subset.read_bytes().splitlines()) == 7


def test_less_uses_the_target(place, finished):
    result = finished[0].select("less", 9, out=place / "less.jsonl")
    assert len(result.selection) == 9
    assert (np.diff(result.selection.scores) <= 0).all()


def test_other_settings_on_the_same_folder_are_refused_by_name(place, finished):
    with pytest.raises(RunError, match=r"features\.dimension: the run has 64, now 32"):
        Run(place / "run", features={"dimension": 32})
    with pytest.raises(RunError, match=r"pool: the run has"):
        Run(place / "run", pool=place / "target.jsonl")
    with pytest.raises(SettingsError, match="did you mean warmup"):
        Run(place / "run", warmups={})


def test_auto_precision_is_settled_when_the_run_begins(place, finished):
    """Otherwise a run that goes on on another device would mix two precisions in one store."""
    assert json.loads((place / "run" / "settings.json").read_text())["dtype"] == "float32"
    assert Run(place / "run", dtype="auto").settings.dtype == "float32"
    with pytest.raises(RunError, match="dtype"):
        Run(place / "run", dtype="bfloat16")


def test_a_pool_that_changed_is_refused(place, tmp_path):
    write_rows(tmp_path / "pool.jsonl", 40, seed=5)
    run = Run(tmp_path / "run", model=place / "model", pool=tmp_path / "pool.jsonl", **SMALL)
    run.warmup()
    write_rows(tmp_path / "pool.jsonl", 40, seed=6)
    with pytest.raises(Exception, match=r"pool was|changed"):
        Run(tmp_path / "run").warmup()


def test_what_could_not_be_done_later_is_refused_before_the_warm_up(place, tmp_path):
    for number, (more, said) in enumerate((
        ({"lora": {"rank": 2, "targets": ["q_proj", "embed_tokens"]}}, "hooks do not see"),
        ({"devices": ["cuda:98", "cuda:99"]}, "cuda:98"),
    )):  # fmt: skip
        run = Run(tmp_path / str(number), model=place / "model", pool=place / "pool.jsonl", **{**SMALL, **more})
        with pytest.raises(ModelError, match=said):
            run.extract()
        assert not (run.folder.warmup / "warmup.json").exists()


def test_mistakes_are_found_before_anything_heavy(place, tmp_path, monkeypatch):
    import pursuit.run.given as module

    monkeypatch.setattr(module, "load_configured", lambda *_, **__: pytest.fail("the model was loaded"))
    run = Run(tmp_path / "run", model=place / "model", pool=place / "pool.jsonl", **SMALL)
    for budget in (0, -1, "0%", "x", "101%", 2.5, 121):
        with pytest.raises(SettingsError, match="budget"):
            run.select("tagcos", budget)
    with pytest.raises(SettingsError, match="there is no method"):
        run.select("tagcoss", 5)
    with pytest.raises(SelectionError, match="--target"):
        run.select("less", 5)
    with pytest.raises(SettingsError, match=r"\.jsonl"):
        run.select("random", 5, out="subset.txt")


def test_two_processes_in_one_folder(place, finished):
    with finished[0].folder.locked(), pytest.raises(RunError, match=rf"in use by process {os.getpid()}"):
        Run(place / "run").encode()


def test_an_unwritable_folder(place, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="cannot be written"):
        Run(tmp_path / "file" / "run", model=place / "model", pool=place / "pool.jsonl").encode()


def run_main(*arguments, capsys) -> tuple[int, str]:
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_yaml_with_flags_over_it(place, tmp_path, capsys):
    import yaml

    config = tmp_path / "job.yaml"
    values = {
        **SMALL, "model": str(place / "model"), "pool": [str(place / "pool.jsonl")], "run": str(tmp_path / "run"),
        "method": "random", "budget": 5, "out": str(tmp_path / "a.jsonl"),
    }  # fmt: skip
    config.write_text(yaml.safe_dump(values))
    assert run_main("run", config, capsys=capsys)[0] == 0
    assert len((tmp_path / "a.jsonl").read_bytes().splitlines()) == 5
    assert run_main("run", config, "--budget", "3", "--out", tmp_path / "b.jsonl", capsys=capsys)[0] == 0
    assert len((tmp_path / "b.jsonl").read_bytes().splitlines()) == 3
    config.write_text(yaml.safe_dump({**values, "warmup": {"lr": 1}}))
    code, text = run_main("run", config, capsys=capsys)
    assert code == 2
    assert "warmup.lr: unknown setting" in text.replace("\n", " ")


def test_own_features(tmp_path, capsys):
    generator = np.random.default_rng(0)
    centres = np.repeat(np.eye(4, 16), 25, axis=0)
    np.save(tmp_path / "features.npy", centres + 0.05 * generator.normal(size=(100, 16)))
    np.save(tmp_path / "target.npy", centres[:3])
    common = ["select", "--features", tmp_path / "features.npy", "--out", tmp_path / "chosen.jsonl"]
    assert run_main(*common, "--method", "tagcos", "--budget", "8", "--param", "clusters=4", capsys=capsys)[0] == 0
    chosen = [json.loads(line)["index"] for line in (tmp_path / "chosen.jsonl").read_text().splitlines()]
    assert sorted(index // 25 for index in chosen) == [0, 0, 1, 1, 2, 2, 3, 3]
    target = ["--method", "less", "--budget", "5", "--target-features", tmp_path / "target.npy"]
    assert run_main(*common, *target, capsys=capsys)[0] == 0
    chosen = [json.loads(line)["index"] for line in (tmp_path / "chosen.jsonl").read_text().splitlines()]
    assert {index // 25 for index in chosen} == {0}
    code, text = run_main(*common, "--method", "less", "--budget", "5", capsys=capsys)
    assert code == 2
    assert "--target-features" in text


def test_bad_row_is_an_error_with_its_line_or_skipped_and_listed(place, tmp_path, capsys):
    pool = tmp_path / "pool.jsonl"
    lines = write_rows(pool, 60, seed=2)
    lines[17] = b'{"prompt": "no closing brace"'
    pool.write_bytes(b"\n".join(lines))
    flags = ["--model", place / "model", "--pool", pool, "--method", "random", "--budget", 5, "--run", tmp_path / "run"]
    code, text = run_main("select", *flags, capsys=capsys)
    assert code == 2
    assert "line 18" in text
    skip = [*flags, "--on-bad-row", "skip", "--out", tmp_path / "s.jsonl"]  # the same folder: nothing is settled yet
    assert run_main("select", *skip, capsys=capsys)[0] == 0
    assert "line" in (tmp_path / "s.report.html").read_text()


def test_ctrl_c_says_that_nothing_is_lost(place, tmp_path):
    flags = ["--model", place / "model", "--pool", place / "pool.jsonl", "--run", tmp_path / "run", "--budget", "5"]
    flags += ["--features.dimension", "64", "--warmup.batch-size", "8", "--param", "clusters=3"]
    flags += ["--warmup.checkpoint-steps", "10", "5000"]  # long enough that it cannot end before it is interrupted
    command = [sys.executable, "-m", "pursuit", "select", *map(str, flags)]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it for what runs in background
    )  # fmt: skip
    while not (tmp_path / "run/warmup/checkpoint-0010").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said


def features_and_choice(folder: Path, subset: Path) -> dict[str, bytes]:
    """Everything a run computed, by file: what must be the same bits."""
    kept = ("*.safetensors", "selection.json", "rows-*.parquet")
    found = {str(p.relative_to(folder)): p.read_bytes() for kind in kept for p in sorted(folder.rglob(kind))}
    return {**found, "subset": subset.read_bytes(), "table": subset.with_name("subset.chosen.parquet").read_bytes()}


def test_killed_anywhere_it_ends_with_the_same_bits(place, tmp_path):
    """SIGKILL in the encoding, in the warm-up, in the middle of the features, and in the selection."""

    def start(folder: Path) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        job = {
            **SMALL, "model": str(place / "model"), "pool": [str(place / "pool.jsonl")], "run": str(folder / "run"),
            "budget": "10%", "params": {"clusters": 4}, "out": str(folder / "subset.jsonl"),
        }  # fmt: skip
        config = folder / "job.yaml"
        config.write_text(json.dumps(job))  # JSON is YAML
        command = [sys.executable, "-m", "pursuit", "run", str(config)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    whole = start(tmp_path / "whole")
    assert whole.wait(timeout=120) == 0, whole.stderr.read().decode()
    killed = tmp_path / "killed"
    for sign in (
        "run/encoded/encoding.json", "run/warmup/checkpoint-0002/checkpoint.json",
        "run/features/checkpoint-00/00002.safetensors", "run/features/checkpoint-01/00004.safetensors",
        "run/selections",
    ):  # fmt: skip
        process = start(killed)
        deadline = time.monotonic() + 120
        while not (killed / sign).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (killed / sign).exists()
    last = start(killed)
    assert last.wait(timeout=120) == 0, last.stderr.read().decode()
    assert features_and_choice(tmp_path / "whole/run", tmp_path / "whole/subset.jsonl") == features_and_choice(
        killed / "run", killed / "subset.jsonl"
    )
