"""The report page says what the data say, in one file that loads nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pursuit.report import (
    write_report,
)
from pursuit.report.page import page
from pursuit.report.summary import distributions
from report_pages import LIBRARY, SOURCES, Page, embedded, make_data


def test_page_is_well_formed_and_every_link_and_label_has_its_target() -> None:
    parsed = Page(page(make_data()))
    ids = parsed.ids()
    assert len(ids) == len(set(ids))
    for _, attributes in parsed.elements:
        href = attributes.get("href") or ""
        assert not href.startswith("#") or href[1:] in ids
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids
    tags = [tag for tag, _ in parsed.elements]
    assert [tags.count(tag) for tag in ("main", "h1", "nav", "header", "footer")] == [1] * 5
    figures = embedded(page(make_data()), "figures")
    drawn = {attributes["data-figure"] for _, attributes in parsed.elements if "data-figure" in attributes}
    assert drawn == set(figures)


def test_page_loads_nothing_from_anywhere() -> None:
    html = page(make_data())
    for tag, attributes in Page(html).elements:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith(("#", "data:,")), tag
    outside_library = LIBRARY.sub("", html)
    assert len(outside_library) < len(html) - 1_000_000
    assert not re.search(
        r"(?i)https?:|url\(|@import|//[a-z]+\.[a-z]|\bfetch\(|XMLHttpRequest|import\(", outside_library
    )
    policy = next(
        a["content"] or "" for _, a in Page(html).elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_policy_allows_exactly_the_scripts_of_the_page() -> None:
    html = page(make_data())
    scripts = [found.encode() for found in re.findall(r"<script>(.*?)</script>", html, re.DOTALL)]
    packed = re.search(r'id="plotly">(.*?)</script>', html, re.DOTALL)
    assert packed is not None
    scripts.append(gzip.decompress(base64.b64decode(packed[1])))
    assert b"plotly.js" in scripts[-1][:200]
    hashes = {base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts}
    assert hashes == set(re.findall(r"sha256-([^']+)'", html))


def test_numbers_of_the_page_are_those_of_the_data() -> None:
    data = make_data(rows=4321, k=432)
    parsed = Page(page(data))
    words = parsed.words()
    assert "432 of 4,321 examples (10.0%)" in words
    names = np.array(data.pool["source"].to_pylist())
    chosen = np.array(data.chosen["source"].to_pylist())
    for source in SOURCES:
        in_pool, picked = int((names == source).sum()), int((chosen == source).sum())
        factor = (picked / 432) / (in_pool / 4321)
        row = f"{source} {in_pool:,} {100 * in_pool / 4321:.1f}% {picked} {100 * picked / 432:.1f}% ×{factor:.2f}"
        assert row in words
    for name, table in (("pool", data.pool), ("chosen", data.chosen)):
        losses = table["loss"].to_numpy()
        expected = [losses.mean(), *np.quantile(losses, [0.05, 0.5, 0.95])]
        assert f"Loss at the last checkpoint, {name} " + " ".join(f"{v:.4g}" for v in expected) + " 0" in words
    for view in data.clusters:
        picked = data.chosen["cluster"].to_pylist().count(view.cluster)
        assert f"{view.cluster} {view.size} {picked} {100 * picked / view.size:.1f}%" in words
    tokens = data.chosen["length"].to_numpy().sum()
    assert f"of the pool's tokens ({tokens:,})" in words
    assert "10 times less than training on the whole pool" in words  # 1000 / (60 + 40)
    assert "Together 3 min." in words
    assert "7 examples equal an earlier one" in words
    assert "4 rows could not be used" in words
    assert "select.clusters 6" in words
    assert "torch 2.13.0" in words


def test_histograms_count_every_row_once_and_share_their_bins() -> None:
    data = make_data(rows=5000, k=400)
    for item in distributions(data):
        assert item.pool_share.sum() == pytest.approx(1)
        assert item.chosen_share.sum() == pytest.approx(1)
        values = np.clip(data.pool[item.column].to_numpy().astype(float), item.edges[0], item.edges[-1])
        inside = (values >= item.edges[3]) & (values < item.edges[4])
        assert item.pool_share[3] == pytest.approx(inside.mean())


def test_figures_are_what_plotly_accepts_once_the_colour_roles_are_replaced() -> None:
    import plotly.graph_objects as go

    style = (Path(__file__).parents[1] / "src/pursuit/report/assets/style.css").read_text()

    def painted(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: painted(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [painted(item, key) for item in value]
        if key.endswith("color") and isinstance(value, str):
            assert value.startswith("@")
            found = re.search(rf"--{value[1:]}: ([^;]+);", style)
            assert found is not None, value
            return found[1]
        return value

    figures = embedded(page(make_data()), "figures")
    expected = {"sources", "clusters", "cluster_residuals", "curves", "length", "response_length", "loss"}
    assert set(figures) == expected | {"gradient_norm", "map", "support", "weights"}
    for figure in figures.values():
        go.Figure(painted(figure))


def test_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    write_report(make_data(seed=3), tmp_path / "a.html")
    write_report(make_data(seed=3), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_what_stands_out_is_said() -> None:
    data = make_data(rows=2000, k=200)
    only_chat = data.chosen.set_column(data.chosen.column_names.index("source"), "source", pa.array(["sums"] * 200))
    words = Page(page(replace(data, chosen=only_chat, budget=250))).words()
    assert "250 examples were asked for and 200 were chosen." in words
    assert re.search(r"Source chat: [\d.]+% of the pool, none of the chosen\.", words)
    assert re.search(r"Source sums is over-represented: ×\d", words)
    assert "Warning something is odd" in words


def test_weights_are_summed_up_as_a_whole_and_by_group() -> None:
    data = make_data(rows=400, k=40)
    weights = data.chosen["weight"].to_numpy()
    words = Page(page(data)).words()
    effective = weights.sum() ** 2 / np.square(weights).sum()
    heaviest = np.sort(weights)[-4:].sum() / weights.sum()
    assert f"The 40 weights count like {round(effective)} equal ones" in words
    assert f"the heaviest tenth of the rows carries {100 * heaviest:.1f}% of the weight" in words
    names = np.array(data.chosen["source"].to_pylist())
    for source in SOURCES:
        rows, weight = (names == source).mean(), weights[names == source].sum() / weights.sum()
        row = f"{source} {(names == source).sum()} {100 * rows:.1f}% {100 * weight:.1f}% ×{weight / rows:.2f}"
        assert row in words
    equal = data.chosen.set_column(data.chosen.column_names.index("weight"), "weight", pa.array([2.0] * 40))
    assert "weights (they are all equal)" in Page(page(replace(data, chosen=equal))).words()


def test_the_course_of_a_joint_choice_stands_beside_that_of_the_most_similar_rows() -> None:
    html = page(make_data())
    words = Page(html).words()
    assert "Residual by iteration" in words
    assert "iteration whole pool most similar rows that entered 1 0.9 0.6 30 2 0.5 0.6 4 3 0.25 0.6 0" in words
    lines = {line["line"]["dash"]: line["y"] for line in embedded(html, "figures")["curves"]["data"]}
    assert lines == {"solid": [0.9, 0.5, 0.25], "dash": [0.6, 0.6, 0.6]}
    assert embedded(html, "figures")["support"]["data"][0]["y"] == [30, 4, 0]
    assert "reading 0.5 s" in words
    assert "Together 2.5 s." in words


def test_targets_agreement_scripts_directions_and_pairs_are_said_in_numbers() -> None:
    words = Page(page(make_data())).words()
    assert "arithmetic 40 30 30 50.0% 0.31" in words
    assert "reading 25 30 29 48.3% 0.42" in words
    assert "another seed 75.0% 0.93" in words
    assert "the two halves with each other 60.0% 0.70" in words
    assert "a random choice 10.0% 0.40" in words
    assert "Left out: checkpoint 2 alone (out of time)." in words
    assert "Latin pool 80.0% chosen 80.0%" in words
    assert "Among 100 of the pool and 10 chosen." in words
    assert "1− 20.0% 30.0% 40.0% the first text the second text" in words
    assert "joint: 0 pairs" in words
    assert "similar: 9 pairs, 1 of them shown" in words
    assert "0.980 similar row 12 and rank 3" in words


def test_time_has_a_price_only_where_one_is_given() -> None:
    data = make_data()  # 60 + 40 seconds against 1,000, at 3.6 an hour
    words = Page(page(data)).words()
    assert "Selection 60 s 0.06 EUR" in words
    assert "Both together 100 s 0.10 EUR" in words.replace("1.7 min", "100 s")
    assert "Train on pool 17 min 1.00 EUR" in words
    assert "Money: 3.60 EUR an hour." in words
    assert "EUR" not in Page(page(replace(data, price_per_hour=None))).words()


def test_agreement_no_better_than_chance_and_scripts_that_vanish_stand_out() -> None:
    data = make_data(scripts=[("Latin", 60, 60), ("Cyrillic", 40, 0)])
    assert data.agreement is not None
    noise = [replace(data.agreement.entries[0], kept=0.12)]
    words = Page(page(replace(data, agreement=replace(data.agreement, entries=noise)))).words()
    assert "Run again with another seed, the method takes only 12.0% of these rows." in words
    assert "Script Cyrillic: 40.0% of the pool, 0.0% of the chosen (in a sample)." in words
