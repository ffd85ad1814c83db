"""RDS+ takes the rows that turn-taking over exact cosines takes, whatever the memory, and says what it cannot do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pursuit import Rds
from pursuit.errors import SelectionError, SettingsError
from pursuit.selectors import method
from pursuit.selectors.rds import _turns, _unit_examples, largest_means, take_in_turn
from pursuit.store.features import Features


def own(array, sources=None) -> Features:
    return Features.from_array(np.asarray(array, dtype=np.float32), sources=sources)


def cosines(pool, target) -> np.ndarray:
    """(M, N) in steps of 2⁻²⁴."""
    unit = [rows / np.where((n := np.linalg.norm(rows, axis=1, keepdims=True)) > 0, n, 1) for rows in (target, pool)]
    return np.round(unit[0] @ unit[1].T * 2**24) / 2**24


def textbook_turns(similarity, turns) -> tuple[list[int], list[float]]:
    """Every turn looks at all rows anew."""
    chosen: list[int] = []
    for example in turns:
        open_rows = [row for row in range(similarity.shape[1]) if row not in chosen]
        chosen.append(max(open_rows, key=lambda row: (similarity[example, row], -row)))
    return chosen, [similarity[example, row] for example, row in zip(turns, chosen, strict=True)]


@given(
    n=st.integers(1, 40), m=st.integers(1, 7), d=st.integers(1, 4), share=st.floats(0, 1), seed=st.integers(0, 30),
    memory=st.sampled_from([1, 500, 1 << 20]),
)  # fmt: skip
def test_turns_are_those_of_the_textbook_in_any_memory(n, m, d, share, seed, memory):
    rng = np.random.default_rng(seed)
    pool = rng.integers(-2, 3, (n, d)).astype(np.float64)  # many ties, duplicates and zero rows
    target = rng.integers(-2, 3, (m, d)).astype(np.float64)
    target[~target.any(axis=1)] = 1
    budget = max(1, round(share * n))
    turns = np.arange(budget) % m
    indices, scores, passes = take_in_turn(pool, _unit_examples(target), turns, memory)
    expected, similarity = textbook_turns(cosines(pool, target), turns)
    assert indices.tolist() == expected
    np.testing.assert_allclose(scores, similarity, atol=1e-7)
    assert passes >= 1


def test_lists_that_are_used_up_are_made_again_without_the_rows_that_are_taken():
    """Equal examples all want the same rows: one list of 1 entry each is used up in every turn."""
    pool = np.random.default_rng(0).standard_normal((200, 5))
    examples = _unit_examples(np.tile([[1.0, 2, 3, 4, 5]], (50, 1)))
    turns = np.arange(100) % 50
    indices, _, passes = take_in_turn(pool, examples, turns, 1)
    assert passes > 10
    ordered = np.argsort(-cosines(pool, examples[:1])[0], kind="stable")[:100]
    assert indices.tolist() == ordered.tolist()
    assert take_in_turn(pool, examples, turns, 1 << 24)[2] == 2  # 64 + 4·2 entries, then enough


def test_each_example_takes_its_nearest_row_in_turn():
    pool = [[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9], [-1, 0]]
    selection = Rds().select(own(pool), 5, target=own([[0, 1], [1, 0]]))
    assert selection.indices.tolist() == [2, 0, 3, 1, 4]
    assert selection.columns["example"].tolist() == [0, 1, 0, 1, 0]
    np.testing.assert_allclose(selection.scores[[0, 4]], [1, 0], atol=1e-6)
    assert selection.weights.tolist() == [1] * 5
    assert selection.diagnostics["targets"] == [{"target": "pool", "examples": 2, "chosen": 5}]


def test_an_example_whose_nearest_row_is_taken_keeps_its_turn():
    selection = Rds().select(own([[1, 0], [1, 0.1], [1, 0.2]]), 2, target=own([[1, 0], [1, -1]]))
    assert selection.indices.tolist() == [0, 1]
    assert selection.columns["example"].tolist() == [0, 1]


def test_duplicates_come_in_order_of_their_index_wherever_they_lie():
    rng = np.random.default_rng(3)
    kinds = rng.standard_normal((7, 33)).astype(np.float16)
    order = rng.integers(0, 7, 5000)
    pool = kinds[order]
    selection = Rds().select(Features.from_array(pool, normalise=False), 400, target=own(kinds[[2]]))
    assert selection.indices.tolist() == np.flatnonzero(order == 2)[:400].tolist()


def test_target_sets_take_turns_before_their_examples_do():
    """Three sets of 4, 1 and 2 examples: equal shares, although the first has most examples."""
    rng = np.random.default_rng(0)
    target = own(rng.standard_normal((7, 6)), sources=["a", "a", "b", "a", "c", "a", "c"])
    selection = Rds().select(own(rng.standard_normal((60, 6))), 21, target=target)
    assert selection.columns["target"].tolist() == [0, 1, 2] * 7
    assert selection.columns["example"].tolist()[:9] == [0, 2, 4, 1, 2, 6, 3, 2, 4]
    assert [entry["chosen"] for entry in selection.diagnostics["targets"]] == [7, 7, 7]


def test_quotas_share_the_turns():
    rng = np.random.default_rng(1)
    target = own(rng.standard_normal((6, 4)), sources=["a", "a", "b", "b", "b", "b"])
    selection = Rds(quotas="a=3,b=1").select(own(rng.standard_normal((50, 4))), 20, target=target)
    assert np.bincount(selection.columns["target"]).tolist() == [15, 5]
    for quarter in range(5):
        assert selection.columns["target"][4 * quarter : 4 * quarter + 4].sum() == 1
    with pytest.raises(SelectionError, match="'c', which is no target set"):
        Rds(quotas="a=1,b=1,c=1").select(own(np.eye(4)), 2, target=target)
    with pytest.raises(SettingsError, match="choose=mean-max has none"):
        Rds(quotas="a=1", choose="mean-max")


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=4), shares=st.lists(st.integers(0, 9), min_size=4))
def test_within_a_set_no_example_has_two_turns_more_than_another(counts, shares):
    parts = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    shares = np.array(shares[: len(counts)])
    if not shares.sum():
        return
    turns = _turns(parts, shares)
    taken = np.bincount(turns, minlength=sum(counts))
    for part, share in zip(parts, shares, strict=True):
        assert taken[part].sum() == share
        assert taken[part].max() - taken[part].min() <= 1


@given(
    n=st.integers(1, 30), seed=st.integers(0, 20), memory=st.sampled_from([1, 700, 1 << 20]), budget=st.integers(1, 30)
)
def test_mean_max_takes_the_largest_mean_similarity(n, seed, memory, budget):
    rng = np.random.default_rng(seed)
    pool, target = rng.standard_normal((n, 3)), rng.standard_normal((5, 3))
    pool[rng.integers(0, n, n // 3)] = pool[0]
    parts = [np.array([0, 3, 4]), np.array([1, 2])]
    means = np.stack([cosines(pool, target)[part].mean(axis=0) for part in parts])
    indices, owners, scores = largest_means(pool, _unit_examples(target), parts, min(budget, n), memory)
    np.testing.assert_allclose(scores, np.sort(means.max(axis=0))[::-1][:budget], atol=1e-6)
    np.testing.assert_allclose(scores, means[owners, indices], atol=1e-6)
    same = [row for row in indices if (pool[row] == pool[0]).all()]
    assert same == sorted(same)


def test_mean_max_goes_to_what_all_examples_have_in_common():
    """The corner rows are nearest to one example each, the row between them to all."""
    pool, target = own([[1, 0], [0, 1], [1, 1]]), own([[1, 0], [0, 1]])
    assert Rds(choose="mean-max").select(pool, 1, target=target).indices.tolist() == [2]
    assert Rds().select(pool, 2, target=target).indices.tolist() == [0, 1]
    mean = Rds(choose="mean-max").select(pool, 3, target=target)
    np.testing.assert_allclose(mean.scores, [2**-0.5, 0.5, 0.5], atol=1e-6)
    assert set(mean.columns) == {"score", "target"}


def test_a_planted_target_is_found():
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((10, 64))
    labels = rng.integers(0, 10, 2000)
    pool = own(centres[labels] + rng.standard_normal((2000, 64)))
    target = own(centres[4] + rng.standard_normal((12, 64)))
    for choose in ("round-robin", "mean-max"):
        chosen = Rds(choose=choose).select(pool, 100, target=target).indices
        assert (labels[chosen] == 4).all()


def test_the_same_choice_in_little_memory():
    rng = np.random.default_rng(6)
    pool, target = own(rng.standard_normal((3000, 16))), own(1 + 0.1 * rng.standard_normal((300, 16)))
    plain = Rds().select(pool, 1500, target=target)
    little = Rds(memory_bytes=1 << 20).select(pool, 1500, target=target)
    assert little.diagnostics["passes"] > plain.diagnostics["passes"] > 1
    assert little.indices.tolist() == plain.indices.tolist()
    np.testing.assert_array_equal(little.scores, plain.scores)


def test_a_matrix_whose_rows_are_elsewhere_is_asked_to_do_the_work_there():
    class Elsewhere:
        def __init__(self, rows):
            self.rows, self.shape, self.calls = rows, rows.shape, 0

        def map_blocks(self, function, block_rows):
            import pickle

            function = pickle.loads(pickle.dumps(function))
            for start in range(0, len(self.rows), block_rows):
                self.calls += 1
                part = self.rows[start : start + block_rows]
                yield start, start + len(part), function(part, start)

    rng = np.random.default_rng(7)
    rows, turns = rng.standard_normal((500, 8)), np.arange(60) % 9
    spread, examples = Elsewhere(rows), _unit_examples(rng.standard_normal((9, 8)))
    for found, here in zip(
        take_in_turn(spread, examples, turns, 1 << 20), take_in_turn(rows, examples, turns, 1 << 20), strict=True
    ):
        np.testing.assert_array_equal(found, here)
    assert spread.calls > 0


def test_several_checkpoints_are_averaged():
    rng = np.random.default_rng(8)
    pool, target = rng.standard_normal((30, 2, 5)), rng.standard_normal((4, 2, 5))
    several = [Features.from_array(array) for array in (pool, target)]
    averaged = [Features.from_array(features.average()[:], normalise=False) for features in several]
    chosen = [Rds().select(a, 10, target=b).indices.tolist() for a, b in (averaged, several)]
    assert chosen[0] == chosen[1]


def test_what_cannot_be_done_is_said():
    pool = own(np.eye(3))
    broken = Features([np.full((3, 3), np.nan, np.float32)], np.ones(1), pool.rows, *[np.ones((1, 3), np.float32)] * 2)
    for features, target, message in (
        (pool, None, "rds needs a target set"),
        (pool, own(np.eye(2)), "dimension of the target's features is 2"),
        (pool, own([[1, 0, 0], [0, 0, 0]]), "row 1 of the target is zero"),
        (broken, own(np.eye(3)), "NaN or infinity in the embeddings of the pool"),
    ):
        for choose in ("round-robin", "mean-max"):
            with pytest.raises(SelectionError, match=message):
                Rds(choose=choose).select(features, 2, target=target)
    with pytest.raises(SettingsError, match="round-robin"):
        Rds(choose="best")


def test_zero_rows_of_the_pool_are_similar_to_nothing():
    selection = Rds().select(own([[0, 0], [1, 1], [-1, 0]]), 3, target=own([[1, 0]]))
    assert selection.indices.tolist() == [1, 0, 2]


def test_it_is_a_method_like_the_others():
    chosen = method("rds", choose="mean-max")
    assert chosen.needs_target
    assert chosen.needs_embeddings
    assert chosen.select(own(np.eye(2)), 1, target=own([[0, 1]])).indices.tolist() == [1]
