"""The page of a choosing training says what its log says. All numbers here are invented but for those of a trainer."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pursuit.report.online import logged_steps, online_page
from pursuit.report.online.page import findings
from pursuit.report.online.plots import MOST_SPANS, spans
from report_pages import HOSTILE, Page, embedded, make_online


def test_totals_and_shares_are_those_of_the_log() -> None:
    words = Page(online_page(make_online())).words()
    assert "tiny-llama trained on what optbatch kept" in words
    assert "Steps 10 logged Kept 50.0% of the candidates In selection 2.5 s 25.0% of the time" in words
    assert "FLOPs saved 20.0% of training on all" in words
    assert findings(make_online()) == [
        "50.0% of the candidates were trained on.", "The mean loss of what was kept is 1 above the candidates'.",
        "Selection took 25.0% of the time of the steps.",
        "By count it took 80.0% of the operations of training on all candidates.",
    ]  # fmt: skip


def test_every_figure_is_drawn_over_the_steps() -> None:
    drawn = embedded(online_page(make_online()), "figures")
    assert set(drawn) == {"losses", "strata", "spread", "seconds", "flops"}
    candidates, kept = drawn["losses"]["data"]
    assert (candidates["name"], candidates["y"][:2]) == ("candidates", [3.0, 2.9])
    assert (kept["name"], kept["y"][-1]) == ("kept", 3.1)
    assert [(bar["name"], bar["y"][0]) for bar in drawn["strata"]["data"]] == [
        ("stratum 1, easiest", 1), ("stratum 2, hardest", 3)
    ]  # fmt: skip
    everything, spent = drawn["flops"]["data"]
    assert (everything["y"][-1], spent["y"][-1]) == (1000.0, 800.0)  # sums over the steps
    assert drawn["seconds"]["data"][1]["y"] == [0.25] * 10


def test_selection_that_costs_more_than_it_saves_is_told_and_so_are_dropped_candidates() -> None:
    steps = [{**step, "flops_spent": 110.0, "flops_saved": -10.0, "dropped": 2} for step in make_online().steps]
    said = findings(replace(make_online(), steps=steps))
    assert "By count it took 110.0% of the operations of training on all candidates: more than it saved." in said
    assert "20 candidates were left out because their loss was not finite." in said


def test_a_selector_without_scores_or_strata_has_fewer_charts() -> None:
    steps = [{"step": step, "candidates": 8, "kept": 4, "seconds": 0.1} for step in (1, 2)]
    html = online_page(replace(make_online(), steps=steps))
    assert set(embedded(html, "figures")) == {"strata", "seconds"}
    assert [bar["name"] for bar in embedded(html, "figures")["strata"]["data"]] == ["kept"]
    assert "There are no logged steps." in Page(online_page(replace(make_online(), steps=[]))).words()


def test_long_trainings_are_drawn_by_means_of_spans_that_cover_every_step() -> None:
    values = [float(value) for value in range(10 * MOST_SPANS)]
    drawn = spans(values)
    assert len(drawn) == MOST_SPANS
    assert drawn[0] == pytest.approx(4.5)
    assert math.fsum(drawn) / MOST_SPANS == pytest.approx(sum(values) / len(values), rel=1e-3)  # drawn with four digits
    assert spans([math.nan, 2.0]) == [None, 2.0]


def test_both_kinds_of_log_are_read_and_other_lines_left_out() -> None:
    lines = [
        {"step": 1, "loss": 2.0, "seconds": 3.0, "batch_selection": {"kept": 4, "seconds": 1.0}},
        {"step": 2, "loss": 2.0, "seconds": 5.0, "batch_selection": {"kept": 5, "seconds": 1.5}},
    ]
    assert logged_steps(lines) == [
        {"step": 1, "kept": 4, "seconds": 1.0, "step_seconds": 3.0},
        {"step": 2, "kept": 5, "seconds": 1.5, "step_seconds": 2.0},
    ]
    history = [
        {"loss": 2.0, "step": 10, "batch_selection/kept": 4.0, "batch_selection/spread": 0.5},
        {"eval_loss": 1.0, "step": 10}, {"train_runtime": 9.0, "step": 20},
    ]  # fmt: skip
    assert logged_steps(history) == [{"step": 10, "kept": 4.0, "spread": 0.5}]


def test_names_cannot_break_the_page() -> None:
    data = replace(make_online(), title=HOSTILE, selector=HOSTILE, model=HOSTILE, settings={HOSTILE: HOSTILE})
    html = online_page(data)
    assert [tag for tag, _ in Page(html).elements].count("script") == [
        tag for tag, _ in Page(online_page(make_online())).elements
    ].count("script")
    assert online_page(data) == html
