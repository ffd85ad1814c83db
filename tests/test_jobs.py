"""Gradients by several processes: the store is the same, bit for bit, however the shards were dealt out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from pursuit import Run
from pursuit.errors import RunError, SettingsError
from pursuit.run.jobs import Share, environment, extract_share
from pursuit.run.status import status
from test_run import SMALL, place, run_main, write_rows  # noqa: F401  (place is a fixture)


def new_run(place, folder, **more):  # noqa: F811
    return Run(folder, model=place / "model", pool=place / "pool.jsonl", **SMALL, **more)


def shards(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}


def shown(*arguments, capsys, code=0):
    ended, text = run_main(*arguments, capsys=capsys)
    assert ended == code, text
    return " ".join(text.split())


@pytest.fixture(scope="module")
def alone(place):  # noqa: F811
    """The store as one process makes it."""
    run = new_run(place, place / "alone")
    run.extract()
    return shards(run.folder.features)


def test_jobs_in_any_order_make_the_same_store(place, alone, tmp_path):  # noqa: F811
    run = new_run(place, tmp_path / "run")
    run.warmup()
    left = [extract_share(tmp_path / "run", Share(number, 3)) for number in (3, 1, 2)]
    assert left[0] > left[1] > left[2] == 0
    assert shards(run.folder.features) == alone


def test_status_names_the_jobs_that_are_missing(place, tmp_path, capsys):  # noqa: F811
    run = new_run(place, tmp_path / "run")
    assert "no run is in this folder" in shown("status", "--run", tmp_path / "run", capsys=capsys, code=2)
    run.warmup()
    assert status(tmp_path / "run", of=4).jobs == [1, 2, 3, 4]
    for number in (1, 2, 4):
        extract_share(tmp_path / "run", Share(number, 4))
    found = status(tmp_path / "run", of=4)
    assert found.jobs == [3]
    assert {shard for _, shard in found.parts[0].missing} == {2, 6}
    shard = next((run.folder.features / "checkpoint-01").glob("00001*"))
    shard.write_bytes(shard.read_bytes()[:-4] + b"oops")
    assert status(tmp_path / "run", of=4).jobs == [3], "files that are there count, unless they are read"
    assert status(tmp_path / "run", of=4, verify=True).jobs == [2, 3]
    text = shown("status", "--run", tmp_path / "run", "--of", 4, "--verify", capsys=capsys)
    assert "jobs to start again: 2/4, 3/4" in text


def test_the_command_does_one_share(place, alone, tmp_path, capsys):  # noqa: F811
    run = new_run(place, tmp_path / "run")
    run.warmup()
    job = ("extract", "--run", tmp_path / "run", "--shard")
    assert "job 1/2 is done; 8 shards of other jobs are missing" in shown(*job, "1/2", capsys=capsys)
    assert "all shards are there" in shown(*job, "2/2", capsys=capsys)
    assert shards(run.folder.features) == alone


def test_jobs_need_a_warm_up_and_a_share_that_exists(place, tmp_path):  # noqa: F811
    with pytest.raises(RunError, match="no run is in this folder yet"):
        extract_share(tmp_path / "run", Share(1, 2))
    new_run(place, tmp_path / "run").encode()
    with pytest.raises(RunError, match="pursuit warmup"):
        extract_share(tmp_path / "run", Share(1, 2))
    for text in ("0/3", "4/3", "3", "a/b", "1/0"):
        with pytest.raises(SettingsError, match="3/16"):
            Share.parse(text)


def test_a_job_keeps_out_whoever_wants_the_folder_alone(place, tmp_path):  # noqa: F811
    run = new_run(place, tmp_path / "run")
    run.warmup()
    with run.folder.locked(shared=True):
        extract_share(tmp_path / "run", Share(1, 8))
        with pytest.raises(RunError, match="in use"):
            Run(tmp_path / "run").extract()


def test_a_process_a_device_makes_the_same_store(place, alone, tmp_path):  # noqa: F811
    run = new_run(place, tmp_path / "run", devices="cpu,cpu")
    run.extract()
    assert shards(run.folder.features) == alone
    logs = sorted(path.name for path in (tmp_path / "run" / "logs").iterdir())
    assert logs == ["extract-1-of-2.log", "extract-2-of-2.log"], "the devices did not do the work"


def test_processes_beside_a_gpu_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert environment("cuda:0", 4)["OMP_NUM_THREADS"] == "4"
    assert environment("cuda:1", 32)["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment("cpu", 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment("cuda:0", 4)["OMP_NUM_THREADS"] == "3"


def test_a_device_that_fails_is_named_with_its_reason(place, tmp_path):  # noqa: F811
    new_run(place, tmp_path / "run").warmup()
    run = Run(tmp_path / "run", devices=["cpu", "nonsense"])
    with pytest.raises(RunError, match=r"nonsense: .*nonsense"):
        run.extract()


def test_the_processes_use_the_settings_of_this_command(place, alone, tmp_path):  # noqa: F811
    """Also those that the run does not keep: one row at a time gives other bits by rounding."""
    new_run(place, tmp_path / "run").warmup()
    run = Run(tmp_path / "run", devices="cpu,cpu", features={"batch_tokens": 1})
    run.extract()
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["features"]["batch_tokens"] != 1
    settings = {**SMALL, "features": {**SMALL["features"], "batch_tokens": 1}}
    one = Run(tmp_path / "one", model=place / "model", pool=place / "pool.jsonl", **settings)
    one.extract()
    assert shards(run.folder.features) == shards(one.folder.features) != alone


def test_killed_jobs_go_on_to_the_same_store(place, alone, tmp_path):  # noqa: F811
    run = new_run(place, tmp_path / "run")
    run.warmup()
    command = [sys.executable, "-m", "pursuit", "extract", "--run", str(tmp_path / "run"), "--shard"]
    both = [subprocess.Popen([*command, f"{number}/2"], stdout=subprocess.DEVNULL) for number in (1, 2)]
    deadline = time.monotonic() + 60
    while not list(run.folder.features.rglob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    both[0].send_signal(signal.SIGKILL)
    assert both[1].wait(60) == 0
    both[0].wait()
    if status(tmp_path / "run").parts[0].missing:
        subprocess.run([*command, "1/2"], check=True, stdout=subprocess.DEVNULL)
    assert shards(run.folder.features) == alone


def test_many_jobs_may_begin_at_once(place, alone, tmp_path):  # noqa: F811
    run = new_run(place, tmp_path / "run")
    run.warmup()
    command = [sys.executable, "-m", "pursuit", "extract", "--run", str(tmp_path / "run"), "--shard"]
    started = [subprocess.Popen([*command, f"{number}/4"], stdout=subprocess.DEVNULL) for number in range(1, 5)]
    assert [job.wait(400) for job in started] == [0] * 4
    assert shards(run.folder.features) == alone
