"""Agreement of a selection with itself under what should not matter."""

from __future__ import annotations

import numpy as np
import pytest

from pursuit import Features
from pursuit.overview.agreement import agreement
from pursuit.selectors import method


def made(name: str, features: Features, budget: int, target: Features | None = None, **parameters):
    selector = method(name, **parameters)
    chosen = selector.select(features, budget, target=target)
    return agreement(selector, features, target, budget, 0, chosen), chosen


def clear_pool(noise: float, checkpoints: int = 2, d: int = 64) -> tuple[Features, Features]:
    """200 rows of which 20 point to the target, at every checkpoint and in every coordinate."""
    generator = np.random.default_rng(0)
    goal = generator.normal(size=d)
    array = generator.normal(size=(200, checkpoints, d))
    array[:20] += 5 * goal
    array += noise * generator.normal(size=array.shape)
    return Features.from_array(array), Features.from_array(np.stack([[goal] * checkpoints] * 4))


def test_a_clear_choice_comes_back_whatever_is_changed():
    features, target = clear_pool(0.1)
    found, chosen = made("less", features, 20, target)
    assert sorted(chosen.indices.tolist()) == list(range(20))
    assert [entry.name for entry in found.entries] == [
        "another seed", "the first half of the projection", "the second half of the projection",
        "checkpoint 1 alone", "checkpoint 2 alone",
    ]  # fmt: skip
    assert [entry.kept for entry in found.entries] == [1.0] * 5
    assert [entry.nearest for entry in found.entries] == [1.0] * 5
    assert [entry.kept for entry in found.between] == [1.0]
    assert found.by_chance == 0.1
    assert found.nearest_by_chance < 1


def test_noise_agrees_about_as_much_as_chance():
    array = np.random.default_rng(1).normal(size=(1000, 2, 64))
    features, target = Features.from_array(array), Features.from_array(np.random.default_rng(2).normal(size=(4, 2, 64)))
    found, _ = made("less", features, 100, target)
    assert found.between[0].kept < 0.2  # 0.1 by chance
    assert 0.3 < found.entries[1].kept < 0.9  # a half shares half of what the whole looks at


def test_another_seed_of_a_random_choice_keeps_what_chance_keeps():
    features = Features.from_array(np.random.default_rng(0).normal(size=(400, 8)))
    found, _ = made("random", features, 100)
    assert [entry.name for entry in found.entries] == ["another seed"]
    assert found.entries[0].kept == pytest.approx(0.25, abs=0.1)
    assert found.entries[0].nearest == pytest.approx(found.nearest_by_chance, abs=0.1)


def test_without_time_the_rest_is_left_out_and_named():
    features, target = clear_pool(0.1)
    selector = method("less")
    chosen = selector.select(features, 20, target=target)
    found = agreement(selector, features, target, 20, 0, chosen, limit_seconds=0.0)
    assert len(found.entries) <= 1
    assert len(found.entries) + len(found.left_out) == 5
    assert {why for _, why in found.left_out} == {"the limit of 0 seconds was reached"}


def test_rows_without_features_have_no_cosines():
    rows = Features.from_array(np.ones((10, 2))).rows
    features = Features.without_gradients(rows)
    found, _ = made("random", features, 5)
    assert np.isnan(found.entries[0].nearest)
    assert np.isnan(found.nearest_by_chance)


def test_a_variant_that_cannot_be_chosen_from_is_left_out_with_its_reason():
    array = np.zeros((30, 2, 6))
    array[:, 0] = np.random.default_rng(0).normal(size=(30, 6))  # nothing at the second checkpoint
    found, _ = made("tagcos", Features.from_array(array), 6, clusters=2)
    assert [name for name, _ in found.left_out] == ["checkpoint 2 alone"]
    assert "zero" in found.left_out[0][1]


@pytest.mark.parametrize("name", ["tagcos", "gtp", "kcenter", "craig"])
def test_it_is_the_same_each_time_and_leaves_the_features_as_they_were(name):
    features = Features.from_array(np.random.default_rng(4).normal(size=(80, 2, 10)))
    before = features.average()[np.arange(80)]
    assert made(name, features, 8)[0] == made(name, features, 8)[0]
    assert np.array_equal(before, features.average()[np.arange(80)])
