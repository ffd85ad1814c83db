"""What the experiments' pages are made from: smaller projections, charts, tables."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from experiments.agreement import cosines, folded, stored_as
from experiments.composition import composition, composition_table
from experiments.plots import budget_chart, curve_chart, score_chart
from experiments.records import counted_seconds, score_table

from pursuit import Features

FOUND = {
    "untrained": 4.0,
    "methods": [
        {"method": "full", "rows": 100, "score": [3.0, 2.9, 3.1], "to_random": None, "gain_kept": 1.0,
         "families": {"a": 2.0, "b": 4.0}},
        {"method": "gtp(x<1)", "rows": 5, "score": [2.5, None, None], "to_random": [-0.7, -0.8, -0.6], "gain_kept": 1.5,
         "families": {"a": 2.0, "b": 3.0}},
    ],
}  # fmt: skip


def unit_rows(count: int, dimension: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_a_folded_projection_keeps_inner_products_up_to_the_error_of_its_size():
    rows = unit_rows(6, 1024)
    rows[1] = (rows[0] + rows[1]) / np.linalg.norm(rows[0] + rows[1])
    exact = rows @ rows.T
    for dimension in (64, 256):
        found = np.stack([folded(dimension, seed)(rows) for seed in range(200)])
        assert found.shape == (200, 6, dimension)
        errors = found @ found.transpose(0, 2, 1) - exact
        assert np.abs(errors.mean(0)).max() < 5 / np.sqrt(200 * dimension), "no bias"
        assert np.sqrt((errors**2).mean()) < 1.5 / np.sqrt(dimension)
    assert np.array_equal(folded(64, 3)(rows), folded(64, 3)(rows))
    assert not np.allclose(folded(64, 3)(rows), folded(64, 4)(rows))
    with pytest.raises(SystemExit, match="does not divide"):
        folded(100, 0)(rows)


def test_rows_are_read_as_a_store_of_that_type_would_give_them():
    rows = unit_rows(5, 64)
    assert np.array_equal(stored_as("float32")(rows), rows)
    assert np.abs(stored_as("int8")(rows) - rows).max() < 0.01
    assert np.array_equal(stored_as("bits")(rows), np.where(rows >= 0, 1, -1).astype(np.float32) / 8)


def test_cosines_are_of_pairs_and_not_of_rows_with_themselves():
    rows = np.array([[[1.0, 0]], [[1, 0]], [[0, 1]], [[0, 1]], [[-1, 0]]])
    found = cosines(Features.from_array(rows, sources=["a", "a", "b", "b", "c"]))
    assert found["same source"] == pytest.approx(1.0)
    assert found["other sources"] == pytest.approx(-2 / 8)


def test_charts_are_whole_and_hold_what_was_found(tmp_path):
    score_chart("loss", FOUND, tmp_path / "scores.svg")
    curve_chart("Residual", [("gtp", [1.0, 0.5, 0.25]), ("a<b", [1.0])], tmp_path / "curves.svg")
    for name, words in (("scores", ["full", "gtp(x<1), 5 rows", "first model 4.00"]), ("curves", ["a<b: 1.000"])):
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        texts = [node.text for node in root.iter() if node.text]
        assert set(words) <= set(texts)
    circles = [node for node in ElementTree.parse(tmp_path / "scores.svg").iter() if node.tag.endswith("circle")]
    best, other = (float(node.attrib["cx"]) for node in circles)
    assert best < other, "the lower loss is on the left, and on top"


def test_the_chart_of_budgets_has_a_line_a_method_over_rising_budgets(tmp_path):
    def at(rows: int, gtp: float, random: float) -> dict:
        whole = {**FOUND["methods"][0], "rows": 2000}
        one = {**FOUND["methods"][1], "method": "a<b", "rows": rows, "score": [gtp, gtp - 0.1, gtp + 9.0]}
        other = {**FOUND["methods"][1], "method": "random", "rows": rows, "score": [random, None, None]}
        return {"metrics": {"loss": {"untrained": 4.0, "methods": [one, other, whole]}}}

    budget_chart("By budget", [at(40, 2.0, 3.0), at(10, 3.0, 5.0), at(20, 2.5, 4.0)], "loss", tmp_path / "budgets.svg")
    root = ElementTree.parse(tmp_path / "budgets.svg").getroot()
    assert {"10", "20", "40", "a<b: 2.00", "random: 3.00", "first model", "4.00", "all rows", "3.00"} <= {
        node.text for node in root.iter()
    }
    lines = [node.attrib["points"].split() for node in root.iter() if node.tag.endswith("polyline")]
    assert [len(line) for line in lines] == [3, 3]
    for line in lines:  # from left to right, and down: the loss falls
        places = [tuple(map(float, point.split(","))) for point in line]
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(places))
    height = float(root.attrib["viewBox"].split()[3])
    ends = [
        float(node.attrib[key])
        for node in root.iter()
        if node.tag.endswith("line")
        for key in ("y1", "y2")
        if key in node.attrib
    ]
    assert all(0 <= end <= height for end in ends), "an interval that leaves the chart is cut off"


def test_the_table_has_intervals_where_they_are_known():
    lines = score_table("loss", FOUND).splitlines()
    assert lines[2].startswith("| first model | 0 | 4.000 |")
    assert lines[3] == "| gtp(x<1) | 5 | 2.500 | -0.700 ± 0.100 | 150% | 2.000 | 3.000 |"
    assert lines[4] == "| full | 100 | 3.000 ± 0.100 |  | 100% | 2.000 | 4.000 |"


def test_what_is_chosen_is_counted_by_collection_and_family():
    def row(source: str, collection: str, answer: str) -> dict:
        return {"source": source, "collection": collection, "messages": [{"content": "?"}, {"content": answer}]}

    pool = [row("a", "x", "1234"), row("b", "y", "12"), row("b", "y", ""), row("subtask042_x", "x", "12")]
    facts = composition(pool, {"a", "b", "d"})
    assert facts == {
        "rows": 4, "of_held_out_families": 0.75, "held_out_families": 2, "families": 3, "collections": {"x": 2, "y": 2},
        "answer_characters": 2.0, "asked_for_wrong_answers": 0.25,
    }  # fmt: skip
    lines = composition_table([{"name": "pool", **facts}, {"name": "m", **composition(pool[3:], {"a"})}]).splitlines()
    assert lines[2] == "| pool | 4 | 75% | 2 | 3 | 25% | 2 | 50% | 50% |"
    assert lines[3] == "| m | 1 | 0% | 0 | 1 | 100% | 2 | 100% | 0% |"


def test_cpu_seconds_of_earlier_processes_are_added(tmp_path):
    assert counted_seconds(tmp_path / "cpu.json", 1.5) == 1.5
    assert counted_seconds(tmp_path / "cpu.json", 2.0) == 3.5
