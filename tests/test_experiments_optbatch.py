"""The OptBatch experiment: equal cost is equal cost, and differences are paired by seed. All numbers are invented."""

from __future__ import annotations

from typing import Any

import pytest
from experiments.optbatch.__main__ import affordable_steps
from experiments.optbatch.studies import STUDIES, Arm
from experiments.optbatch.table import EXPECTED, summary
from experiments.records import part_of


def cell(arm: str, seed: int, cpu: float = 10.0, loss: float = 2.0, exact: float = 0.5) -> dict[str, Any]:
    return {
        "arm": arm, "seed": seed, "steps": 40, "trained_examples": 80, "cpu_seconds": cpu, "flops": cpu * 1e9,
        "loss": loss, "exact": exact,
    }  # fmt: skip


def test_an_arm_has_as_many_steps_as_the_cost_of_training_on_all_pays_for() -> None:
    cells = [
        cell("full", 0, 10), cell("random 0.5", 0, 5), cell("full", 1, 20), cell("random 0.5", 1, 8),
        cell("full", 2, 10), cell("random 0.5", 2, 1),
    ]  # fmt: skip
    assert affordable_steps(cells[:2], "random 0.5", 40) == 80
    assert affordable_steps(cells, "random 0.5", 40) == 100  # the median of 2, 2.5 and 10
    assert affordable_steps(cells, "full", 40) == 40


def test_differences_are_paired_by_seed_and_to_random_at_the_same_rate() -> None:
    cells = [cell("full", seed, 10, 2.0 + seed) for seed in range(3)]
    cells += [cell("random 0.5", seed, 5, 2.5 + seed) for seed in range(3)]
    cells += [cell("random 0.7", seed, 3, 9.0) for seed in range(3)]
    cells += [cell("optbatch 0.5", seed, 8, 2.2 + 1.001 * seed) for seed in range(3)]
    found = {one["arm"]: one for one in summary(cells)}
    # nearly the same for every seed: next to no width
    assert found["optbatch 0.5"]["loss_to_full"] == pytest.approx([0.201, 0.1985, 0.2035], abs=1e-4)
    assert found["optbatch 0.5"]["loss_to_random"] == pytest.approx([-0.299, -0.3015, -0.2965], abs=1e-4)
    assert found["optbatch 0.5"]["loss"][2] - found["optbatch 0.5"]["loss"][1] > 2  # the seeds themselves lie apart
    assert found["optbatch 0.5"]["cpu_seconds_of_full"][0] == pytest.approx(0.8)
    assert found["random 0.5"]["loss_to_random"] is None
    assert found["full"]["loss_to_full"] is None


def test_every_selector_of_the_experiment_exists_and_its_expectations_are_written() -> None:
    assert Arm("full").selector(3).seed == 3
    assert Arm("optbatch", 0.7).selector(0).prune == 0.7
    for name in STUDIES:
        assert part_of(name, EXPECTED).startswith("1. *Cost:*")
