"""Texts of the data in the report stay texts, whatever they hold."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pursuit.report import NearDuplicate, write_report
from pursuit.report.examples import clip, compared
from pursuit.report.page import page
from pursuit.report.text import visible
from report_pages import HOSTILE, Page, embedded, hostile_data, make_data, terminal


@cache
def plain_page() -> Page:
    return Page(page(hostile_data("plain")))


def check_harmless(html: str, text: str) -> None:
    parsed = Page(html)
    # The same elements as with a plain text (differing words of a pair aside): nothing of the text became markup.
    tags = [tag for tag, _ in parsed.elements if tag != "mark"]
    assert tags == [tag for tag, _ in plain_page().elements if tag != "mark"]
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", html)
    for figure in embedded(html, "figures").values():
        for trace in figure["data"]:
            for shown in [*trace.get("text", []), *trace.get("hovertext", [])]:
                assert set(re.findall("<[^>]*>?", shown)) <= {"<br>"}
    kept = "".join(part for part, _, _ in embedded(html, "examples")[0]["segments"])
    assert len(kept) == 2 * len(text)
    html.encode("utf-8")


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    data = hostile_data(HOSTILE)
    html = page(data)
    check_harmless(html, HOSTILE)
    assert "\u2028" not in html.split('id="examples"')[1]
    assert "␀␛[31m\ufffd" in embedded(html, "examples")[0]["segments"][0][0]
    write_report(data, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert "\x1b" not in terminal(data)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(), min_size=1, max_size=30))
def test_any_text_stays_text(text: str) -> None:
    check_harmless(page(hostile_data(text)), text)


def test_browser_gets_every_example_with_its_response_marked() -> None:
    data = make_data()
    records = embedded(page(data), "examples")
    assert [record["index"] for record in records] == [example.index for example in data.examples]
    assert records[0]["segments"] == [["Question: ", 0, ""], [f"answer {data.examples[0].index}", 1, ""]]


def test_long_examples_are_cut_in_the_middle_and_short_responses_stay_whole() -> None:
    records = clip([("p" * 50_000 + "END", False), ("the answer", True)], 1000)
    assert records[-1] == ["the answer", 1, ""]
    assert sum(len(text) for text, _, _ in records) <= 1100
    left_out = int(re.sub(r"\D", "", records[0][2]))
    assert sum(len(text) for text, _, _ in records) + left_out == 50_003 + len("the answer")
    assert records[1][0].endswith("END")


@given(st.text(max_size=60), st.text(max_size=60))
def test_compared_texts_come_back_whole_and_differ_only_where_marked(a: str, b: str) -> None:
    left, right = compared(NearDuplicate(0, 1, 0.9, a, b))
    assert ("".join(text for text, _ in left), "".join(text for text, _ in right)) == (visible(a), visible(b))
    assert [text for text, differs in left if not differs] == [text for text, differs in right if not differs]


def test_a_long_source_name_or_title_does_not_hide_the_numbers_in_the_terminal() -> None:
    data = make_data()
    pool = data.pool.set_column(1, "source", pa.array(["s" * 300] * 300 + ["[bold]x[/bold]"] * 300))
    text = terminal(replace(data, pool=pool), width=80)
    assert "50.0%" in text
    assert "[bold]x[/bold]" in text
