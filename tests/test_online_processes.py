"""Two processes under DDP: each chooses from its own candidates, and all stay the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from online_processes import GOES_ON

resumes = pytest.mark.skipif(
    not GOES_ON, reason="with transformers before 5.18, processes without GPUs cannot go on from a checkpoint"
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).with_name("online_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(folder)], capture_output=True, text=True, env=environment, cwd=script.parent, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    return one, other, folder


@pytest.mark.parametrize("name", ["full", "lora"])
def test_each_process_keeps_as_many_of_its_own_candidates(ranks: Any, name: str) -> None:
    one, other = ranks[0][name], ranks[1][name]
    for rank in (one, other):
        assert [len(order) for order in rank["orders"]] == [2] * 6  # four steps of two batches, three batches an epoch
    assert one["first_tokens"] != other["first_tokens"]
    assert one["orders"] != other["orders"]


AGAIN = [pytest.param(name, marks=resumes) for name in ("full resumed", "lora resumed")]


@pytest.mark.parametrize("name", ["full", "lora", "random", "info", *AGAIN])
def test_all_processes_end_with_the_same_model_and_second_moment(ranks: Any, name: str) -> None:
    one, other = ranks[0][name], ranks[1][name]
    assert one["weights"] == other["weights"]
    assert one["moment"] == other["moment"]
    assert one["moment_steps"] == (None if name in ("random", "info") else 4)


@resumes
@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_resumed_training_chooses_the_same_in_each_process(ranks: Any, name: str) -> None:
    for rank in ranks[:2]:
        assert rank[name + " resumed"]["orders"] == rank[name]["orders"][3:]
        assert rank[name + " resumed"]["weights"] == rank[name]["weights"]
    kept = sorted(path.name for path in (ranks[2] / name / "checkpoint-2").glob("batch_selection*"))
    assert kept == ["batch_selection_0.safetensors", "batch_selection_1.safetensors"]


def test_nothing_left_out_is_the_unmodified_trainer(ranks: Any) -> None:
    assert ranks[0]["all"]["weights"] == ranks[0]["plain"]["weights"]


def test_the_log_has_the_selection(ranks: Any) -> None:
    assert ranks[0]["full"]["logged"] == 2


def test_random_choices_differ_between_processes(ranks: Any) -> None:
    assert ranks[0]["random"]["orders"] != ranks[1]["random"]["orders"]


def test_examples_are_weighed_as_in_one_pass_though_processes_have_other_weights(ranks: Any) -> None:
    kinds = [[sorted(set(factors)) for factors in rank["info"]["factors"]] for rank in ranks[:2]]
    assert any(one != other for one, other in zip(*kinds, strict=True)), "else nothing is shown here"
    for rank in ranks[:2]:
        assert rank["info"]["orders"] == rank["info in one pass"]["orders"]
        np.testing.assert_allclose(rank["info"]["weights"], rank["info in one pass"]["weights"], rtol=1e-4, atol=1e-4)
