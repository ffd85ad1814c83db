"""Missing parts, odd values and large pools all make a report."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pursuit.report import (
    ClusterView,
    ReportData,
)
from pursuit.report.page import page
from pursuit.report.summary import source_shares
from report_pages import Page, embedded, features_only, make_data, terminal


def test_features_without_texts_leave_sections_out_and_say_why() -> None:
    html = page(features_only())
    parsed = Page(html)
    sections = [attributes["id"] for tag, attributes in parsed.elements if tag == "section"]
    assert sections == ["overview", "browse", "time"]
    words = parsed.words()
    assert "Not in this report: map (not computed); sources (there is only one); clusters (the" in words
    assert "weights (they are all equal)" in words
    assert "agreement (not asked for)" in words
    assert "There are no texts to show" in words
    assert 'id="plotly"' not in html  # nothing to draw, nothing to carry
    assert len(html) < 60_000
    assert "5 of 50 examples (10.0%)" in terminal(features_only())


@pytest.mark.parametrize(
    ("missing", "section"),
    [
        ({"clusters": []}, "clusters"),
        ({"residuals": {}}, "residuals"),
        ({"map": None, "directions": []}, "map"),
        ({"near_duplicates": [], "examples": [], "method_pairs": []}, "near"),
        ({"targets": []}, "targets"),
        ({"agreement": None}, "agreement"),
        ({"refused": [], "refused_total": 0}, "refused"),
        ({"settings": {}, "versions": {}}, "settings"),
    ],
)
def test_each_missing_part_leaves_out_its_own_section(missing: dict[str, Any], section: str) -> None:
    everything = Page(page(make_data())).ids()
    without = Page(page(make_data(**missing))).ids()
    assert section in everything
    assert section not in without


def test_unknown_losses_leave_out_their_chart_alone() -> None:
    data = make_data()
    place = data.pool.column_names.index("loss")
    pool = data.pool.set_column(place, "loss", pa.array(np.full(data.pool.num_rows, np.nan)))
    html = page(replace(data, pool=pool))
    assert "loss" not in embedded(html, "figures")
    assert "gradient_norm" in embedded(html, "figures")
    assert "losses (unknown)" in Page(html).words()


@pytest.mark.parametrize("k", [1, 2])
def test_one_or_two_chosen_examples_make_a_page(k: int) -> None:
    data = make_data(rows=30, k=k, near_duplicates=[], residuals={"whole pool": [0.4]})
    assert f"{k} of 30 examples" in Page(page(data)).words()
    assert f"{k} of 30 examples" in terminal(data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", None]),
            st.one_of(st.none(), st.integers(0, 10**9)),
            st.floats(width=32),
            st.integers(-1, 3),
        ),
        min_size=1, max_size=12,
    ),
    st.integers(1, 12),
)  # fmt: skip
def test_any_values_make_a_page(rows: list[tuple[Any, ...]], k: int) -> None:
    sources, lengths, losses, clusters = zip(*rows, strict=True)
    pool = pa.table({
        "source": pa.array(sources, pa.string()), "length": pa.array(lengths, pa.int64()),
        "loss": pa.array(losses, pa.float32()), "cluster": pa.array(clusters, pa.int32()),
        "gradient_norm": pa.array(losses, pa.float64()),
    })  # fmt: skip
    chosen = pool.slice(0, k)
    views = [ClusterView(c, clusters.count(c), 1, [abs(v) for v in losses if np.isfinite(v)]) for c in set(clusters)]
    data = ReportData(
        title="t", method="m", budget=k, pool_size=len(rows), pool=pool, chosen=chosen, clusters=views,
        timings=[("stage", 0.0, "")],
    )  # fmt: skip
    Page(page(data))
    terminal(data)


def test_many_sources_are_summed_up_in_the_chart_and_listed_in_the_table() -> None:
    rows = 3000
    names = pa.array([f"source {i % 150:03d}" for i in range(rows)])
    data = replace(
        make_data(rows=rows, k=300),
        pool=make_data(rows=rows, k=300).pool.set_column(1, "source", names),
    )
    figure = embedded(page(data), "figures")["sources"]
    assert len(figure["data"][0]["y"]) == 21
    assert sum(figure["data"][0]["x"]) == pytest.approx(1, abs=1e-3)
    assert len(source_shares(data)) == 153  # those of the chosen that the pool does not name are shown as well
    assert "source 149" in Page(page(data)).words()


def test_a_large_pool_stays_a_small_page_made_in_little_time_and_memory() -> None:
    data = make_data(rows=200_000, k=10_000)
    data = replace(
        data, examples=[replace(e, segments=[("x" * 9000, False), ("é" * 9000, True)]) for e in data.examples[:500]]
    )
    page(make_data())  # plotly is read once for all pages
    tracemalloc.start()
    started = time.perf_counter()
    html = page(data)
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(html.encode()) < 8_000_000
    assert seconds < 15
    assert peak < 120_000_000
    assert sum(len(part["x"]) for part in embedded(html, "figures")["map"]["data"]) <= 5000
