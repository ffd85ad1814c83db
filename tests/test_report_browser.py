"""The pages in a real browser: nothing fails, nothing is fetched, all is drawn, readable and reachable by keyboard."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from pursuit.report import write_report
from pursuit.report.comparison import write_comparison
from pursuit.report.online import write_online
from report_browser import CONTRAST, FOCUS, Browser, installed
from report_pages import HOSTILE, features_only, hostile_data, make_comparison, make_data, make_online

pytestmark = pytest.mark.skipif(installed() is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    names = ("report", "comparison", "online", "features", "hostile", "hostile-comparison")
    found = {name: folder / f"{name}.html" for name in names}
    write_report(make_data(), found["report"])
    write_report(features_only(), found["features"])
    write_report(hostile_data(HOSTILE), found["hostile"])
    write_comparison(make_comparison(), found["comparison"])
    write_online(make_online(), found["online"])
    write_comparison(make_comparison(HOSTILE), found["hostile-comparison"])
    return found


@pytest.mark.parametrize("name", ["report", "comparison", "online", "features", "hostile", "hostile-comparison"])
def test_it_opens_without_an_error_or_a_request_and_draws_every_chart(browser, pages, name):
    browser.open(pages[name])
    assert browser.trouble() == []
    drawn = browser.js("""Array.from(document.querySelectorAll('[data-figure]'),
      (place) => [place.dataset.figure, place.querySelectorAll('.trace path').length])""")
    assert [figure for figure, marks in drawn if not marks] == []
    assert (len(drawn) > 0) == (name != "features")


def test_the_overview_fits_on_one_screen(browser, pages):
    browser.open(pages["report"])
    assert browser.js("document.getElementById('overview').getBoundingClientRect().bottom") <= 900


def test_a_point_of_the_map_says_its_row_and_opens_it(browser, pages):
    browser.open(pages["report"])
    browser.js("document.getElementById('map').scrollIntoView()")
    x, y, row = browser.js("""(() => {
      const plot = document.querySelector('[data-figure=map]'), box = plot.getBoundingClientRect();
      const { xaxis, yaxis } = plot._fullLayout, chosen = plot.data[1];
      const far = chosen.x.reduce((best, value, i) => (value > chosen.x[best] ? i : best), 0);  // nothing covers it
      return [box.left + xaxis._offset + xaxis.d2p(chosen.x[far]), box.top + yaxis._offset + yaxis.d2p(chosen.y[far]),
              chosen.customdata[far]];
    })()""")
    browser.pointer(x - 1, y)
    browser.pointer(x, y)
    browser.wait("document.querySelector('[data-figure=map] .hoverlayer').textContent !== ''")
    said = browser.js("document.querySelector('[data-figure=map] .hoverlayer').textContent")
    assert f"row {row}" in said
    assert f"text {row}" in said
    browser.pointer(x, y, click=True)
    browser.wait("document.querySelectorAll('#browse-list article').length === 1")
    assert f"answer {row}" in browser.js("document.querySelector('#browse-list').textContent")
    assert browser.js("document.activeElement.id") == "browse-all"
    browser.press("Enter", 13, "\r")
    browser.wait("document.querySelectorAll('#browse-list article').length === 20")


def test_examples_stand_beside_their_neighbours_with_their_reasons(browser, pages):
    browser.open(pages["report"])
    first = browser.js("document.querySelector('#browse-list article').textContent")
    assert "Its place is 0." in first
    assert "Not chosen" in first
    assert "cosine 0.912" in first
    left, right = browser.js("Array.from(document.querySelectorAll('#browse-list article:first-of-type .sides > *'))"
                             ".slice(0, 2).map((side) => side.getBoundingClientRect().left)")  # fmt: skip
    assert left < right


def test_examples_are_searched_and_turned_by_page(browser, pages):
    browser.open(pages["report"])
    data = make_data()
    assert browser.js("document.getElementById('browse-page').textContent") == "page 1 of 3"
    browser.js("document.getElementById('browse-next').click()")
    assert browser.js("document.querySelector('#browse-list h3').textContent") == "Rank 20"
    wanted = data.examples[41].segments[1][0]
    browser.js(f"(() => {{ const e = document.getElementById('browse-text'); e.value = {json.dumps(wanted)};"
               "e.dispatchEvent(new Event('input', { bubbles: true })); })()")  # fmt: skip
    browser.wait("document.getElementById('browse-count').textContent.includes(' of ')")
    assert wanted in browser.js("document.querySelector('#browse-list article').textContent")


@pytest.mark.parametrize("name", ["report", "comparison", "online"])
def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(browser, pages, name):
    browser.open(pages[name])
    reachable = browser.js("""
      Array.from(document.querySelectorAll('a[href], button, input, select, summary, .scroll'))
        .filter((e) => e.checkVisibility() && !e.disabled && e.tabIndex >= 0).length""")
    seen = []
    for _ in range(reachable):
        browser.press("Tab", 9)
        seen.append(browser.js(FOCUS))
    assert [seen[0]["name"], seen[1]["name"]] == ["Skip to the report", "Overview"]
    places = [item["place"] for item in seen]
    assert places == sorted(set(places))  # the order of the document, and nothing twice
    for item in seen:
        assert item["name"], item
        assert item["outline"] != "none", item
        assert min(item["wide"], item["high"]) > 5, item


@pytest.mark.parametrize("name", ["report", "comparison", "online"])
def test_everything_that_a_screen_reader_announces_has_a_name(browser, pages, name):
    browser.open(pages[name])
    named = {"link", "button", "textbox", "searchbox", "combobox", "region", "table", "heading", "search", "navigation"}
    unnamed = []
    for node in browser("Accessibility.getFullAXTree")["nodes"]:
        role, label = node.get("role", {}).get("value"), node.get("name", {}).get("value", "")
        drawn = "modebar" in json.dumps(node.get("properties", []))
        if role in named and not node["ignored"] and not label.strip() and not drawn:
            unnamed.append(node)
    assert unnamed == []
    levels = browser.js("Array.from(document.querySelectorAll('h1, h2, h3'), (e) => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["report", "comparison", "online"])
def test_every_text_has_enough_contrast(browser, pages, name, dark):
    browser.open(pages[name], dark=dark)
    browser.js("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    assert browser.js(CONTRAST) == []


@pytest.mark.parametrize("name", ["report", "comparison", "online", "features"])
def test_a_narrow_window_needs_no_sideways_scrolling(browser, pages, name):
    browser.open(pages[name], width=380)
    browser.js("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    assert browser.js("document.documentElement.scrollWidth") == 380


def test_it_prints_in_light_colours_and_comes_back(browser, pages):
    browser.open(pages["report"], dark=True)
    painted = "document.querySelector('[data-figure=sources] .main-svg').style.background"
    before = browser.js(painted)
    browser.js(f"addEventListener('beforeprint', () => {{ window.printed = {painted}; }})")
    pdf = browser.pdf()
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 3
    assert browser.js("window.printed") == "rgb(255, 255, 255)"
    assert browser.js(painted) == before != "rgb(255, 255, 255)"


def test_a_heading_sorts_its_table_both_ways_and_keeps_what_is_unknown_last(browser, pages):
    browser.open(pages["comparison"])
    rows = "document.querySelector('table.sortable').tBodies[0].rows"
    column = f"Array.from({rows}, (row) => row.cells[{{}}].textContent.trim())"
    head = "document.querySelector('table.sortable').tHead.rows[0].cells[{}]"
    browser.js(head.format(5) + ".querySelector('button').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.js(head.format(5) + ".getAttribute('aria-sort')") == "descending"
    gaps = browser.js(column.format(5))
    assert gaps[0].startswith("+0.05")
    assert gaps[-3:] == ["–", "–", "–"]  # random twice, and the whole pool
    browser.press("Enter", 13, "\r")
    assert browser.js(head.format(5) + ".getAttribute('aria-sort')") == "ascending"
    gaps = browser.js(column.format(5))
    assert gaps[0].startswith("−0.04")
    assert gaps[-3:] == ["–", "–", "–"]
    browser.js(head.format(0) + ".querySelector('button').click()")
    names = browser.js(column.format(0))
    assert names == sorted(names)
    assert browser.js(head.format(5) + ".hasAttribute('aria-sort')") is False
