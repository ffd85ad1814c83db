"""Methods by name, their settings, budgets, and selections on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pursuit.errors import SelectionError, SettingsError, StoreError
from pursuit.selectors import METHODS, PRESETS, Gtp, Selection, Tagcos, check_budget, describe, method, parse_budget
from test_selectors_gtp import planted


@pytest.mark.parametrize(
    ("budget", "rows"),
    [
        ("5%", 50), ("0.5%", 5), (0.05, 50), ("0.05", 50), (500, 500), ("500", 500), (500.0, 500), ("100%", 1000),
        (1000, 1000), (1, 1), (" 5 % ", 50), ("1_000", 1000), ("0.15%", 2), (0.0005, 1), (np.int64(7), 7),
    ],
)  # fmt: skip
def test_budgets_that_mean_something(budget, rows):
    assert parse_budget(budget, 1000) == rows
    check_budget(budget)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, "choose nothing"), ("0%", "choose nothing"), (-5, "choose nothing"), (1001, "more than the pool's 1,000"),
        ("101%", "more than"), (0.0001, "less than one of 1,000"), (2.5, "not a whole number"),
        ("many", "not a number"),
        ("", "not a number"), ("%", "not a number"), (float("nan"), "not a number"), ("inf", "not a number"),
        (True, "not a number"), (None, "not a number"),
    ],
)  # fmt: skip
def test_budgets_that_mean_nothing_are_refused_and_told_what_would_do(budget, message):
    with pytest.raises(SettingsError, match=message) as caught:
        parse_budget(budget, 1000)
    assert '"5%" or 0.05, or a whole number' in str(caught.value)


@given(num_rows=st.integers(1, 10**7), share=st.floats(0.001, 0.999))
def test_a_share_is_rounded_to_the_nearest_row(num_rows, share):
    if share * num_rows >= 1:
        assert abs(parse_budget(share, num_rows) - share * num_rows) <= 0.5 + 1e-6


def test_an_unknown_method_is_an_error_that_names_the_nearest():
    with pytest.raises(SettingsError, match=r"no method 'tagcoss'\. Did you mean 'tagcos'"):
        method("tagcoss")
    with pytest.raises(SettingsError, match="random, stratified, tagcos-published"):
        method("xyz")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cluster": 3}, "no setting 'cluster'. Did you mean 'clusters'"),
        (
            {"clusters": 0},
            "clusters=0 cannot be used. It must be a whole number, at least 1: number of k-means clusters",
        ),
        ({"clusters": "many"}, "clusters='many' cannot be used"),
        ({"ridge": -1}, "ridge=-1 cannot be used. It must be a number, at least 0"),
        ({"ridge": float("nan")}, "ridge=nan"),
        ({"apportionment": "up"}, '"largest-remainder" or "floor"'),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_key_value_and_what_is_accepted(settings, message):
    for make in (Tagcos, lambda **given: method("tagcos", **given)):
        with pytest.raises(SettingsError, match=message):
            make(**settings)


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        Tagcos().clusters = 3


def test_every_method_and_setting_describes_itself():
    described = {entry.name: entry for entry in describe()}
    assert set(described) == {*METHODS, *PRESETS}
    for entry in described.values():
        assert entry.summary.endswith(".")
        assert entry.paper
        for parameter in entry.parameters:
            assert parameter.description
            assert parameter.accepted
    assert {p.name: p.default for p in described["tagcos-published"].parameters}["apportionment"] == "floor"


def example() -> Selection:
    return Selection(
        np.array([4, 0, 2]), np.array([0.5, 0.25, 0.0]), "tagcos", 6, {"clusters": 2},
        {"cluster": np.array([0, 1, 0]), "score": np.array([0.9, 0.8, 0.7])}, {"clusters": [{"size": 4}]},
    )  # fmt: skip


def test_a_selection_comes_back_from_disk_as_it_was(tmp_path):
    example().save(tmp_path)
    back = Selection.load(tmp_path)
    assert back.indices.tolist() == [4, 0, 2]
    assert back.weights.tolist() == [0.5, 0.25, 0.0]
    assert back.clusters.tolist() == [0, 1, 0]
    assert back.scores.tolist() == [0.9, 0.8, 0.7]
    assert (back.method, back.num_rows) == ("tagcos", 6)
    assert back.parameters == {"clusters": 2}
    assert back.diagnostics == {"clusters": [{"size": 4}]}


def test_a_damaged_or_mixed_up_selection_is_not_loaded(tmp_path):
    example().save(tmp_path)
    with pytest.raises(StoreError, match="cannot be read"):
        Selection.load(tmp_path / "elsewhere")
    whole = (tmp_path / "selection.safetensors").read_bytes()
    (tmp_path / "selection.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match="does not belong"):
        Selection.load(tmp_path)
    (tmp_path / "selection.safetensors").unlink()
    with pytest.raises(StoreError, match="not a whole selection"):
        Selection.load(tmp_path)
    (tmp_path / "selection.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(StoreError, match="not a whole selection"):
        Selection.load(tmp_path)


@pytest.mark.parametrize(
    ("indices", "weights", "message"),
    [
        ([0, 6], [1, 1], "must lie in 0 … 5"),
        ([-1], [1], "must lie in"),
        ([1, 1], [1, 1], "twice"),
        ([1], [1, 1], "weights"),
    ],
)
def test_a_selection_holds_each_row_once_and_in_range(indices, weights, message):
    with pytest.raises(SelectionError, match=message):
        Selection(np.array(indices), np.array(weights), "random", 6)


@pytest.mark.filterwarnings("ignore:.*rows follow the goal as closely.*")
def test_gtp_compares_no_more_rows_than_its_memory_holds():
    features, _ = planted(n=900, d=60)
    for bytes_, told in ((1 << 20, True), (1 << 24, False)):
        found = Gtp(memory_bytes=bytes_).select(features, 800).diagnostics
        assert any("are not fitted for comparison" in text for text in found["not_compared"]) is told
        assert ("the same number of most similar rows" in found["residuals"]) is not told


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_at_once(device):
    with pytest.raises(SettingsError, match=rf"device='{device}' cannot be used: not there"):
        method("tagcos", device=device)
