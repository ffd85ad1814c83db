"""Several target sets share a budget: each one's mean is followed with its part of it."""

from __future__ import annotations

import json
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pursuit.errors import SelectionError, SettingsError
from pursuit.selectors import Gtp, Less, Omp, Selection, method
from pursuit.selectors.quotas import interleaved, quota_shares
from pursuit.solvers import compressive_pursuit, matching_pursuit
from pursuit.store.features import Features

pytestmark = pytest.mark.filterwarnings("ignore:.*as closely as any number can")
NAMES = st.lists(st.text("abc=", min_size=1, max_size=4).filter(str.strip), min_size=1, max_size=6, unique=True)
SHARES = st.floats(1e-3, 1e3).map(lambda share: round(share, 3))


def pool(n: int = 500, groups: int = 4, checkpoints: int = 2, d: int = 30, seed: int = 0):
    """Rows around clear centres, each row's group, and a target with the sets `two` (group 2) and `one` (group 1)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, checkpoints, d))
    labels = rng.integers(0, groups, n)

    def around(kinds: np.ndarray) -> np.ndarray:
        return centres[kinds] + 0.5 * rng.standard_normal((len(kinds), checkpoints, d))

    wanted = np.array([2, 1, 1, 2, 1])
    target = Features.from_array(around(wanted), sources=[("zero", "one", "two")[kind] for kind in wanted])
    return Features.from_array(around(labels), weights=[2, 1]), labels, target


def side_by_side(features: Features) -> np.ndarray:
    parts = [np.asarray(features.checkpoint(t)[:], np.float64) for t in range(features.num_checkpoints)]
    return np.concatenate(parts, axis=1)


@given(NAMES, st.data(), st.integers(1, 500))
def test_shares_add_up_and_none_is_a_row_away_from_its_quota(names, data, budget):
    quotas = {name: data.draw(SHARES) for name in names}
    shares = quota_shares("gtp", quotas, names, budget)
    exact = [Fraction(str(quotas[name])) * budget / sum(Fraction(str(s)) for s in quotas.values()) for name in names]
    assert shares.sum() == budget
    assert all(abs(share - wanted) < 1 for share, wanted in zip(shares.tolist(), exact, strict=True))
    assert quota_shares("gtp", {name: 10 * share for name, share in quotas.items()}, names, budget).tolist() == (
        shares.tolist()
    )


def test_without_quotas_all_sets_get_the_same_and_the_first_ones_what_is_left_over():
    assert quota_shares("gtp", None, ["a", "b", "c"], 8).tolist() == [3, 3, 2]
    assert quota_shares("gtp", {"b": 1, "a": 2, "c": 1}, ["a", "b", "c"], 6).tolist() == [3, 2, 1]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any))
def test_every_beginning_of_the_order_keeps_the_shares(shares):
    order = interleaved(np.array(shares))
    owner = np.repeat(np.arange(len(shares)), shares)[order]
    assert sorted(order.tolist()) == list(range(sum(shares)))
    for kind in range(len(shares)):
        assert (np.diff(order[owner == kind]) == 1).all()
        counts = np.cumsum(owner == kind)
        wanted = np.arange(1, len(order) + 1) * shares[kind] / sum(shares)
        assert (np.abs(counts - wanted) <= len(shares)).all()


@pytest.mark.parametrize("name", ["gtp", "omp"])
def test_each_set_is_followed_by_a_pursuit_of_its_own_over_the_rows_that_are_left(name):
    features, labels, target = pool()
    selection = method(name, quotas="two=1,one=2").select(features, 18, target=target)
    rows, goals = side_by_side(features), side_by_side(target)
    left, expected = np.arange(500), {}
    for number, (members, share) in enumerate((([0, 3], 6), ([1, 2, 4], 12))):  # as the target names them: two, one
        solve = compressive_pursuit if name == "gtp" else partial(matching_pursuit, ridge=0.0)
        expected[number] = found = solve(rows[left], goals[members].mean(axis=0), share)
        mine = selection.columns["target"] == number
        assert selection.indices[mine].tolist() == left[found.indices].tolist()
        scaled = found.weights * share / found.weights.sum()  # each set counts as much as its quota says
        np.testing.assert_allclose(selection.weights[mine], scaled, rtol=1e-6)
        left = np.setdiff1d(left, left[found.indices])
    about = selection.diagnostics["targets"]
    assert [(entry["target"], entry["examples"], entry["chosen"]) for entry in about] == [("two", 2, 6), ("one", 3, 12)]
    for number, entry in enumerate(about):
        np.testing.assert_allclose(entry["residuals"], expected[number].residuals, rtol=1e-6)
        assert selection.diagnostics["residuals"][f"{name}: {entry['target']}"] == entry["residuals"]
    first = selection.columns["target"] == 0
    weights, kinds = selection.weights[first], labels[selection.indices[first]]
    assert weights[kinds == 2].sum() > 0.8 * weights.sum()


def test_the_beginning_of_the_order_serves_all_sets():
    features, _, target = pool()
    owners = Gtp(quotas="one=3,two=1").select(features, 40, target=target).columns["target"]
    assert np.bincount(owners).tolist() == [10, 30]
    assert np.bincount(owners[:8]).tolist() == [2, 6]


def test_facts_of_each_set_are_whole_and_can_be_written(tmp_path):
    features, _, target = pool()
    selection = Gtp(subspace=10).select(features, 31, target=target)
    for entry in selection.diagnostics["targets"]:
        assert set(entry["seconds"]) == {"reading", "correlations", "candidates", "fitting"}
        assert 0 < entry["residual"] < 1
        assert entry["rank"] == entry["passes"][1] if len(entry["passes"]) > 1 else entry["rank"] == entry["chosen"]
        assert len(entry["support_changes"]) == len(entry["residuals"])
        assert len(entry["goal_kept_by_subspaces"]) == 2
    curves = selection.diagnostics["residuals"]
    assert list(curves) == ["gtp: two", "gtp: one"] + [
        f"the same number of most similar rows: {name}" for name in ("two", "one")
    ]
    selection.save(tmp_path)
    assert Selection.load(tmp_path).diagnostics == json.loads(json.dumps(selection.diagnostics))


def test_one_set_or_one_mean_is_followed_as_published():
    features, _, target = pool()
    together = Features.from_array(np.stack([target.checkpoint(t) for t in range(2)], axis=1))
    plain = Gtp().select(features, 12, target=together)
    mean = Gtp(targets="mean").select(features, 12, target=target)
    named = Gtp(quotas={"pool": 7}).select(features, 12, target=together)
    for selection in (mean, named):
        assert selection.indices.tolist() == plain.indices.tolist()
        np.testing.assert_allclose(selection.weights, plain.weights, rtol=1e-5)
        assert "target" not in selection.columns


def test_less_gives_every_subtask_its_best_rows_in_turn():
    features, _, target = pool()
    scores = sum(
        weight * np.stack([
            np.asarray(features.checkpoint(t), np.float64) @ np.asarray(target.checkpoint(t)[rows], np.float64).mean(0)
            for rows in ([0, 3], [1, 2, 4])
        ])
        for t, weight in enumerate(features.weights)
    )  # fmt: skip
    published = Less().select(features, 30, target=target)
    assert published.indices.tolist() == np.argsort(-scores.max(axis=0), kind="stable")[:30].tolist()
    selection = Less(quotas="one=2,two=1").select(features, 30, target=target)
    assert np.bincount(selection.columns["subtask"]).tolist() == [10, 20]
    assert [(entry["subtask"], entry["chosen"]) for entry in selection.diagnostics["subtasks"]] == [
        ("two", 10), ("one", 20),
    ]  # fmt: skip
    left = np.ones(500, bool)
    for index, subtask, score in zip(selection.indices, selection.columns["subtask"], selection.scores, strict=True):
        assert index == np.argmax(np.where(left, scores[subtask], -np.inf))
        assert score == pytest.approx(scores[subtask, index])
        left[index] = False


def test_all_rows_can_be_shared_out():
    features, _, target = pool(n=12)
    for selector in (Gtp(), Omp(), Less(quotas="one=1,two=5")):
        selection = selector.select(features, 12, target=target)
        assert sorted(selection.indices.tolist()) == list(range(12))


@pytest.mark.parametrize("name", ["gtp", "omp", "less"])
def test_a_budget_smaller_than_the_number_of_sets_serves_the_first(name):
    features, _, target = pool()
    selector = method(name, quotas="one=1,two=1")
    if name == "less":
        selection = selector.select(features, 1, target=target)
    else:
        with pytest.warns(UserWarning, match="The budget of 1 leaves no row for 1 of 2 target sets: one"):
            selection = selector.select(features, 1, target=target)
        assert selection.diagnostics["targets"][1]["chosen"] == 0
    assert len(selection) == 1


@pytest.mark.parametrize(
    ("quotas", "message"),
    [
        ("two=1,on=2", r"quotas name 'on', which is no target set\. Did you mean 'one'\? The target sets are two, one"),
        ("two=1", "give no share to the target set 'one'"),
    ],
)
def test_quotas_name_the_target_sets(quotas, message):
    features, _, target = pool(50)
    for name in ("gtp", "omp", "less"):
        with pytest.raises(SelectionError, match=message):
            method(name, quotas=quotas).select(features, 5, target=target)


def test_quotas_need_targets():
    features, _, _ = pool(50)
    with pytest.raises(SelectionError, match="there is no target"):
        Gtp(quotas="a=1").select(features, 5)
    with pytest.raises(SettingsError, match="gtp: quotas share the budget among target sets, and in_domain follows"):
        Gtp(quotas="a=1", in_domain=True)
    with pytest.raises(SettingsError, match=r"omp: quotas .* one mean of all"):
        Omp(quotas="a=1", targets="mean")


@pytest.mark.parametrize(
    ("quotas", "message"),
    [
        ("a", "write it as name=share,name=share"), ("=2", "write it as"), ("a=1,", "write it as"), ({}, "write it as"),
        (3, "write it as"), ("a=1,a=2", "'a' is given twice"), ("a=x", "the share of 'a' is 'x', not a number above 0"),
        ({"a": 0}, "the share of 'a' is 0, not"), ({"a": float("nan")}, "nan, not"), ({"a": True}, "True, not"),
        ("a=inf", "'inf', not"),
    ],
)  # fmt: skip
def test_quotas_that_mean_nothing_are_refused_and_told_what_would_do(quotas, message):
    for kind in (Gtp, Omp, Less):
        with pytest.raises(SettingsError, match=message) as caught:
            kind(quotas=quotas)
        assert "name=number,name=number or nothing: shares of the budget" in str(caught.value)


@given(st.dictionaries(st.text("ab= ", min_size=1, max_size=4).filter(lambda t: t == t.strip()), SHARES, min_size=1))
def test_quotas_are_the_same_as_text_and_as_a_mapping(quotas):
    text = ",".join(f"{name} = {share}" for name, share in quotas.items())
    assert method("gtp", quotas=text).quotas == Gtp(quotas=quotas).quotas == quotas
    assert Gtp(quotas=text).model_dump(mode="json")["quotas"] == quotas


def test_a_set_whose_mean_is_zero_is_named():
    features, _, target = pool(50)
    zero = np.stack([target.checkpoint(t) for t in range(2)], axis=1)
    zero[[0, 3]] = 0
    target = Features.from_array(zero, sources=["two", "one", "one", "two", "one"])
    with pytest.raises(SelectionError, match="the mean of the target set 'two' that is to be followed is zero"):
        Gtp().select(features, 5, target=target)
