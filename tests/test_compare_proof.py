"""What a comparison must be trusted for: equal subsets score equally, intervals cover, and a kill costs one cell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from pursuit.compare import Comparison, compare
from pursuit.compare.plan import FULL, UNTRAINED, cell_folder, cells
from pursuit.compare.results import _gain, comparison_data, interval
from pursuit.compare.work import Job
from test_compare import TRAIN, begun, settings  # noqa: F401  (begun is a fixture)
from test_run import place  # noqa: F401  (a fixture)

TRIALS, SEEDS = 400, 3
JOB = Job(
    name="gtp-5%-seed0", cells="cells", run="run", encoded=None,
    settings={"lora": None, "adapter": None, "weights": ["*"], "dtype": "float32"}, model_digest="m",
    adapter_digest=None, data_digest="d",
    indices=np.array([3, 1]), weights=np.array([0.5, 2.0]), num_rows=9, way=TRAIN, seed=0,
    evaluation=("heldout.jsonl",), evaluation_digest="e", metrics=("loss",), scorers=(), players=(), keep_model=False,
)  # fmt: skip


def test_identical_subsets_have_identical_scores(begun, tmp_path):  # noqa: F811
    run, folder = begun
    twice = ["longest", "longest()"]  # one method under two names: cells of their own with the same rows
    wanted = settings(folder, methods=[*twice, "kcenter"], metrics=["loss", "exact"])
    found = compare(run, wanted, tmp_path / "out")
    names = [path.name for path in (tmp_path / "out" / "cells").glob("longest*")]
    assert len(names) == 4, "each was trained, none was taken from the other"
    by_method = {one.method: one for one in found.data.metrics[0].scores}
    first, second = (by_method[name] for name in twice)
    assert first.score == second.score
    assert first.to_random == second.to_random
    assert first.families == second.families
    assert first.score != by_method["kcenter"].score
    rows = {(row["method"], row["seed"]): row["score.loss"] for row in found.runs.to_pylist()}
    for seed in (0, 1):
        assert rows[twice[0], seed] == rows[twice[1], seed]


def test_weights_make_another_cell_only_where_they_are_used():
    other = np.array([0.5, 2.0 + 1e-9])
    assert replace(JOB, weights=other).folder == JOB.folder
    weighted = replace(JOB, way=replace(TRAIN, weighted=True))
    assert replace(weighted, weights=other).folder != weighted.folder != JOB.folder
    assert replace(JOB, indices=np.array([3, 2])).folder != JOB.folder


def test_an_adapter_of_other_weights_is_another_cell():
    settings = {**JOB.settings, "adapter": "a", "weights": []}
    one, other = (replace(JOB, settings=settings, adapter_digest=digest) for digest in ("x", "y"))
    assert one.folder != other.folder != JOB.folder


def test_weights_in_4_bits_are_another_cell():
    usual, packed = (replace(JOB, settings={**JOB.settings, "load_in_4bit": packed}) for packed in (False, True))
    assert usual.folder == JOB.folder  # as before there was the choice
    assert packed.folder != JOB.folder


def test_rows_of_another_pool_are_another_cell():
    for job in (JOB, replace(JOB, indices=None), replace(JOB, way=None)):
        assert replace(job, data_digest="of another pool").folder != job.folder


def test_an_interval_covers_a_known_mean_as_often_as_it_says():
    draw = np.random.default_rng(0)
    for seeds in (2, 3, 10):
        found = [interval(draw.normal(2.0, 0.3, seeds).tolist()) for _ in range(TRIALS)]
        covered = np.mean([one.low <= 2.0 <= one.high for one in found])
        assert abs(covered - 0.95) < 0.035


def test_the_paired_difference_covers_a_known_one_and_does_not_see_what_a_seed_does_to_all():
    draw = np.random.default_rng(1)
    comparison = Comparison(["gtp"], ["5%"], ["heldout.jsonl"], seeds=SEEDS)
    found = [_made(comparison, draw) for _ in range(TRIALS)]
    covered = np.mean([one.to_random.low <= -0.2 <= one.to_random.high for one in found])
    assert abs(covered - 0.95) < 0.035
    paired = np.mean([one.to_random.high - one.to_random.low for one in found])
    alone = np.mean([one.score.high - one.score.low for one in found])
    assert paired < alone / 5


def _made(comparison: Comparison, draw: np.random.Generator):
    """The score of a method that is better than random by 0.2, where seeds differ far more than that."""
    of_seed = draw.normal(3.0, 1.0, SEEDS)
    means = {"gtp": -0.2, "random": 0.0, FULL: -0.5, UNTRAINED: 1.0}
    results = []
    for cell in cells(comparison):
        loss = float(of_seed[cell.seed] + means[cell.method] + draw.normal(0, 0.05))
        results.append((cell, {"scores": {"loss": loss}, "families": {"loss": {"one": loss}}, "rows": 5}))
    (block,) = comparison_data(comparison, results, 100).metrics
    return next(one for one in block.scores if one.method == "gtp")


def test_killed_and_started_again_no_finished_cell_is_repeated(begun, tmp_path, monkeypatch):  # noqa: F811
    run, folder = begun
    out = tmp_path / "out"
    wanted = settings(folder, methods=["kcenter", "longest"], seeds=3)
    killed = _killed_after_a_cell(run.folder.path, folder / "heldout.jsonl", out)
    assert 0 < len(killed) < len(cells(wanted)), "it was killed while cells were missing"

    import pursuit.compare.work as module

    trained = []
    original = module.finetune
    monkeypatch.setattr(module, "finetune", lambda *a, **k: trained.append(a[2].parent.name) or original(*a, **k))
    found = compare(run, wanted, out)
    assert not set(trained) & killed
    trained_before = [name for name in killed if not name.startswith(UNTRAINED)]
    assert len(trained) + len(trained_before) == len(cells(wanted)) - 1
    unbroken = compare(run, wanted, tmp_path / "unbroken")
    assert found.runs["score.loss"] == unbroken.runs["score.loss"]


def _killed_after_a_cell(run, heldout, out) -> set[str]:
    """Names of the cells that stood when the command was killed."""
    command = [
        sys.executable, "-m", "pursuit", "compare", "--run", run, "--methods", "kcenter,longest",
        "--budgets", "10%", "--seeds", "3", "--eval", heldout, "--steps", str(TRAIN.max_steps),
        "--batch-size", str(TRAIN.batch_size), "--learning-rate", str(TRAIN.learning_rate), "--out", out,
    ]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, command)), env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while len(_standing(out)) < 2:
        if process.poll() is not None:
            pytest.fail(f"the command ended by itself: {process.stderr.read().decode()[-2000:]}")
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return _standing(out)


def _standing(out) -> set[str]:
    return {path.parent.name for path in (out / "cells").glob("*/cell.json")}


@pytest.mark.parametrize(
    ("metric", "untrained", "whole", "known"),
    [
        ("loss", 3.0, [2.0, 2.1], True), ("loss", 2.0, [2.1, 2.2], False), ("loss", 2.0, [1.9, 2.05, 2.0], False),
        ("exact", 0.1, [0.5], True), ("exact", 0.5, [0.5], False), ("loss", None, [1.0], False),
        ("loss", 2.0, [], False),
    ],
)  # fmt: skip
def test_a_share_of_the_gain_is_shown_only_where_there_is_a_gain(metric, untrained, whole, known):
    found = _gain(metric, untrained, whole)
    assert found == ((untrained, pytest.approx(np.mean(whole))) if known else None)


def test_a_method_with_many_parameters_has_a_folder_that_can_be_made(tmp_path):
    name = f'less(quotas="{",".join(f"a_rather_long_name_of_a_task_{number}=1" for number in range(40))}")-5%-seed0'
    one, other = (cell_folder(tmp_path, name, key) for key in ("0123456789", "abcdef0123"))
    one.mkdir()
    assert one != other
    assert one.name.endswith("-01234567")
