"""Strata, counts and farthest points are those of their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pursuit.online.spread import spread_over
from pursuit.online.strata import clipped, drawn_counts, expected_counts, make_strata
from pursuit.solvers.farthest_point import farthest_point

losses_of_a_batch = st.lists(st.floats(0, 900, allow_subnormal=False), min_size=1, max_size=40).map(np.array)


def textbook(features: np.ndarray, strata: np.ndarray, plan: list[tuple[int, int]]) -> list[int]:
    """Farthest point by its definition, one distance at a time."""
    chosen: list[int] = []
    for stratum, count in plan:
        for _ in range(count):
            best, far = -1, -1.0
            for row in np.flatnonzero(strata == stratum):
                if row in chosen:
                    continue
                distances = [float(np.linalg.norm(features[row] - features[other])) for other in chosen]
                distance = min(distances) if chosen else float(np.linalg.norm(features[row]))
                if distance > far:
                    best, far = int(row), distance
            chosen.append(best)
    return chosen


@given(losses_of_a_batch, st.integers(1, 9), st.sampled_from(["quantile", "width"]), st.data())
def test_counts_sum_to_n_and_fit_their_strata(losses: np.ndarray, count: int, cut: Any, data: Any) -> None:
    budget = data.draw(st.integers(0, len(losses)))
    strata = make_strata(losses, count, cut)
    sizes = np.bincount(strata)
    for counts in (
        expected_counts(losses, strata, budget), drawn_counts(losses, strata, budget, np.random.default_rng(0))
    ):  # fmt: skip
        assert counts.sum() == budget
        assert len(counts) == len(sizes)
        assert (counts >= 0).all()
        assert (counts <= sizes).all()


@given(losses_of_a_batch, st.integers(1, 9))
def test_quantile_strata_differ_by_one_in_size_and_are_ordered_by_loss(losses: np.ndarray, count: int) -> None:
    strata = make_strata(losses, count, "quantile")
    sizes = np.bincount(strata)
    assert len(sizes) == min(count, len(losses))
    assert sizes.max() - sizes.min() <= 1
    for easier, harder in zip(range(len(sizes)), range(1, len(sizes)), strict=False):
        assert losses[strata == easier].max() <= losses[strata == harder].min()


def test_strata_of_equal_width_may_be_empty() -> None:
    assert make_strata(np.array([0.0, 0.1, 3.0]), 3, "width").tolist() == [0, 0, 2]
    assert make_strata(np.array([2.0, 2.0]), 3, "width").tolist() == [0, 0]


def test_expected_counts_are_those_of_many_draws() -> None:
    losses = np.array([0.1, 0.4, 0.8, 1.2, 1.3, 2.0, 2.1, 2.2, 0.2])
    strata = make_strata(losses, 3, "quantile")
    odds = np.exp(losses) / np.exp(losses).sum()
    draws = np.random.default_rng(0).choice(strata, size=40_000, p=odds)  # with replacement: n draws and count
    shares = np.bincount(draws) / len(draws)
    counts = expected_counts(losses, strata, 4)
    assert np.abs(counts - 4 * shares).max() < 1
    assert counts.tolist() == [0, 1, 3]


def test_what_a_stratum_is_too_small_for_goes_to_the_next_in_proportion() -> None:
    losses = np.array([0.0, 0.0, 1.0, 1.0, 40.0, 40.0])
    strata = make_strata(losses, 3, "quantile")
    assert expected_counts(losses, strata, 4).tolist() == [1, 1, 2]
    assert expected_counts(losses, strata, 5).tolist() == [1, 2, 2]


def test_a_draw_is_without_replacement_and_favours_high_losses() -> None:
    losses = np.array([0.0] * 6 + [2.0] * 6)
    strata = make_strata(losses, 2, "quantile")
    draws = [drawn_counts(losses, strata, 4, np.random.default_rng(seed)) for seed in range(200)]
    assert len({tuple(draw) for draw in draws}) > 1
    assert np.mean(draws, axis=0)[1] > 3


@given(st.integers(1, 25), st.integers(1, 5), st.integers(1, 6), st.integers(0, 30), st.data())
def test_the_choice_is_the_textbooks(rows: int, width: int, count: int, seed: int, data: Any) -> None:
    generator = np.random.default_rng(seed)
    features, losses = generator.normal(size=(rows, width)), generator.random(rows)
    budget = data.draw(st.integers(1, rows))
    strata = make_strata(losses, count, "quantile")
    plan = list(enumerate(expected_counts(losses, strata, budget).tolist()))[::-1]
    found = spread_over(features, strata, plan)
    assert found.indices.tolist() == textbook(features, strata, plan)
    chosen = features[found.indices]
    for place in range(1, budget):
        nearest = np.linalg.norm(chosen[:place] - chosen[place], axis=1).min()
        assert found.distances[place] == pytest.approx(nearest, abs=1e-6)


@given(st.integers(1, 30), st.integers(0, 30), st.data())
def test_one_stratum_is_plain_farthest_point(rows: int, seed: int, data: Any) -> None:
    features = np.random.default_rng(seed).normal(size=(rows, 4))
    budget = data.draw(st.integers(1, rows))
    found = spread_over(features, np.zeros(rows, dtype=np.int64), [(0, budget)])
    indices, distances = farthest_point(features, budget)
    assert found.indices.tolist() == indices.tolist()
    np.testing.assert_allclose(found.distances, distances)


def test_equal_examples_are_chosen_by_index_and_last() -> None:
    features = np.array([[1.0, 0], [1, 0], [0, 1], [1, 0]])
    assert spread_over(features, np.zeros(4, dtype=np.int64), [(0, 4)]).indices.tolist() == [0, 2, 1, 3]


def test_cosine_distance_does_not_see_length() -> None:
    features = np.array([[3.0, 0], [0, 1], [9, 1], [0, 0]])
    strata = np.zeros(4, dtype=np.int64)
    longest_first = spread_over(features, strata, [(0, 2)], "cosine").indices.tolist()
    assert longest_first == [2, 1]
    assert spread_over(features, strata, [(0, 2)], "l2").indices.tolist() == [2, 3]


def test_clipping_bounds_what_one_outlier_takes() -> None:
    losses = np.concatenate([np.linspace(1, 2, 99), [60.0]])
    bounded = clipped(losses, 0.99)
    assert bounded.max() < 5
    np.testing.assert_array_equal(bounded[:99], losses[:99])
