"""The comparison page says what the scores say, whatever they are called. All numbers here are invented."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pursuit.report.comparison import (
    CompareData,
    Interval,
    MethodScore,
    MetricScores,
    comparison_page,
    write_comparison,
)
from pursuit.report.comparison.findings import findings, interval_text
from report_pages import HOSTILE, Page, embedded, make_comparison


def test_every_score_stands_in_the_table_with_its_interval_difference_share_and_cost() -> None:
    words = Page(comparison_page(make_comparison())).words()
    # method, budget, rows, seeds, score, against random, of the full gain, selecting, training, money (2 an hour)
    assert "tagcos 1.0% 10 3 0.300 (0.290 to 0.310) +0.050 (+0.030 to +0.070) ▲ better than random 50.0%" in words
    assert "50.0% 10 min 72 s 0.37 USD" in words
    assert "less 5.0% 50 3 0.310 (0.300 to 0.320) −0.040 (−0.060 to −0.020) ▼ worse than random 55.0%" in words
    assert "random 1.0% 10 3 0.250 (0.240 to 0.260) – 25.0% 0 s 72 s 0.04 USD" in words
    assert "full 100.0% 1,000 3 0.400 (0.390 to 0.410) – 100.0% – 2 h 4.00 USD" in words
    assert "less 1.0% 10 3 0.260 (0.250 to 0.270) +0.010 (−0.010 to +0.030) 30.0%" in words  # neither mark


def test_the_overview_names_the_best_what_beats_random_and_what_does_not_pay() -> None:
    said = findings(make_comparison())
    assert said[0] == (
        "At 1.0%, tagcos is best: exact match 0.300 (0.290 to 0.310), +0.050 (+0.030 to +0.070) against random, "
        "clear of 0; it keeps 50.0% of what the whole pool gains."
    )
    assert "it keeps 95.0%" in said[1]
    assert said[2] == "Worse than random, the interval clear of 0: less at 5.0%."
    assert said[3] == ("The cheapest way to 95.0% of the full gain or more: tagcos at 5.0%, 16 min against 2 h.")
    data = make_comparison()
    dear = replace(data.metrics[0].scores[0], selection_seconds=9000.0)
    data = replace(data, metrics=[replace(data.metrics[0], scores=[dear, *data.metrics[0].scores[1:]])])
    assert any("tagcos at 1.0% does not pay: selecting and training take 2.5 h" in text for text in findings(data))


def test_where_lower_is_better_the_lowest_is_best_and_a_fall_beats_random() -> None:
    data = make_comparison()
    data = replace(data, metrics=[data.metrics[1]])
    said = findings(data)
    assert said[0].startswith("At 1.0%, random is best: loss 0.250")
    assert "tagcos at 1.0%, 5.0%" in next(text for text in said if text.startswith("Worse than random"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": 1}, "Some results rest on 1 seed"),
        ({"no random": True}, "Random is not among the methods"),
        ({"no full": True}, "The pool was not trained on as a whole"),
    ],
)
def test_what_limits_the_result_is_said(change: dict[str, object], said: str) -> None:
    data = make_comparison(seeds=int(change.get("seeds", 3)))  # type: ignore[call-overload]
    metric = data.metrics[0]
    if "no random" in change:
        metric = replace(metric, scores=[score for score in metric.scores if score.method != "random"])
    if "no full" in change:
        metric = replace(metric, full=None)
    assert said in Page(comparison_page(replace(data, metrics=[metric]))).words()


def test_bars_begin_at_the_untrained_model_and_carry_their_intervals() -> None:
    figures = embedded(comparison_page(make_comparison()), "figures")
    assert set(figures) == {"bars-0-0", "bars-0-1", "bars-1-0", "bars-1-1", "curves-0", "curves-1", "cost"}
    bars = figures["bars-0-1"]["data"][0]  # at 5%: tagcos, random, less, full
    assert bars["base"] == [0.2] * 4
    assert bars["x"] == pytest.approx([0.19, 0.15, 0.11, 0.2])
    assert bars["error_x"]["array"] == pytest.approx([0.01] * 4)
    assert figures["bars-0-1"]["layout"]["yaxis"]["ticktext"] == ["tagcos", "random", "less", "full"]
    curve = next(line for line in figures["curves-0"]["data"] if line.get("name") == "less")
    assert (curve["x"], curve["y"]) == ([0.01, 0.05], [0.26, 0.31])
    cost = {line["name"]: line["x"] for line in figures["cost"]["data"]}
    assert cost == {"tagcos": [672, 960], "less": [672, 960], "random": [72, 360], "full": [7200]}


def test_one_method_keeps_one_colour_and_sign_on_the_whole_page() -> None:
    figures = embedded(comparison_page(make_comparison()), "figures")
    looks: dict[str, set[tuple[str, str]]] = {}
    for name in ("curves-0", "curves-1", "cost"):
        for line in figures[name]["data"]:
            if line.get("name"):
                looks.setdefault(line["name"], set()).add((line["marker"]["color"], line["marker"]["symbol"]))
    assert all(len(found) == 1 for found in looks.values())
    assert len({found for look in looks.values() for found in look}) == len(looks)


def test_families_are_coloured_by_their_difference_to_random() -> None:
    parsed = Page(comparison_page(make_comparison()))
    cells = [a for tag, a in parsed.elements if tag == "td" and "shade" in (a.get("class") or "")]
    assert {"number shade good", "number shade bad"} == {cell["class"] for cell in cells}
    deepest = max(cells, key=lambda cell: int(re.sub(r"\D", "", cell["style"] or "0")))
    assert deepest["style"] == "--depth: 45%"


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.41234, 0.40111, 0.42357), "0.412 (0.401 to 0.424)"),
        (Interval(1234.5, 1200.0, 1269.0), "1,234 (1,200 to 1,269)"),
        (Interval(0.000123456, 0.000121, 0.000125), "0.0001235 (0.0001210 to 0.0001250)"),
        (Interval(0.5), "0.5"),
        (Interval(-0.25, -0.5, 0.0), "−0.25 (−0.50 to 0.00)"),
        (Interval(-0.001, -0.5, 0.498), "0.00 (−0.50 to 0.50)"),
        (Interval(float("nan")), "–"),
        (None, "–"),
    ],
)
def test_intervals_have_as_many_decimals_as_their_width_supports(interval: Interval | None, text: str) -> None:
    assert interval_text(interval) == text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    write_comparison(make_comparison(HOSTILE), tmp_path / "c.html")
    html = (tmp_path / "c.html").read_text(encoding="utf-8")
    tags = [tag for tag, _ in Page(html).elements]
    assert tags == [tag for tag, _ in Page(comparison_page(make_comparison("plain"))).elements]
    assert not any(name.startswith("on") for _, attributes in Page(html).elements for name in attributes)
    for figure in embedded(html, "figures").values():
        for trace in figure["data"]:
            for shown in [*trace.get("text", []), trace.get("name", "")]:
                assert set(re.findall("<[^>]*>?", shown)) <= {"<br>"}


def test_it_loads_nothing_and_its_policy_allows_only_its_scripts() -> None:
    html = comparison_page(make_comparison())
    for tag, attributes in Page(html).elements:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:,")), tag
    policy = next(a["content"] for _, a in Page(html).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert html == comparison_page(make_comparison())


def test_links_and_charts_have_their_places() -> None:
    html = comparison_page(make_comparison())
    parsed = Page(html)
    ids = parsed.ids()
    assert len(ids) == len(set(ids))
    assert all(a["href"][1:] in ids for _, a in parsed.elements if (a.get("href") or "").startswith("#"))  # type: ignore[index]
    drawn = {attributes["data-figure"] for _, attributes in parsed.elements if "data-figure" in attributes}
    assert drawn == set(embedded(html, "figures"))


def test_no_scores_at_all_make_a_page() -> None:
    assert "There are no scores." in Page(comparison_page(CompareData(title="empty", metrics=[]))).words()
    nothing = CompareData(title="empty", metrics=[MetricScores(name="loss", scores=[])])
    assert "Random is not among the methods" in Page(comparison_page(nothing)).words()


some_floats = st.one_of(st.floats(-1e100, 1e100), st.sampled_from([float("nan"), float("inf"), -float("inf")]))
numbers = st.one_of(st.none(), st.floats(-1e6, 1e6), st.just(float("nan")))
scores = st.builds(
    MethodScore,
    method=st.sampled_from(["a", "b", "random", "full", ""]), budget=st.sampled_from([0.001, 0.05, 1.0]),
    rows=st.integers(0, 10**9), seeds=st.integers(1, 9),
    score=st.builds(Interval, some_floats, some_floats, some_floats),
    to_random=st.one_of(st.none(), st.builds(Interval, some_floats, some_floats, some_floats)),
    gain_kept=numbers, selection_seconds=st.one_of(st.none(), st.floats(0, 1e9)),
    training_seconds=st.one_of(st.none(), st.floats(0, 1e9)),
    families=st.dictionaries(st.sampled_from("xyz"), some_floats),
)  # fmt: skip


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(scores, max_size=6), numbers, st.booleans(), st.one_of(st.none(), scores))
def test_any_scores_make_a_page(
    some: list[MethodScore], untrained: float | None, higher: bool, full: MethodScore | None
) -> None:
    metric = MetricScores(name="m", scores=some, untrained=untrained, higher_is_better=higher, full=full)
    Page(comparison_page(CompareData(title="t", metrics=[metric], price_per_hour=1.0)))
