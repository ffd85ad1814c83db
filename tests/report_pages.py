"""Made-up report data, and a reader of the page, for the tests of the report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from pursuit.report import (
    ClusterView,
    ExampleView,
    GradientMap,
    NearDuplicate,
    ReportData,
    terminal_summary,
)

VOID = {"meta", "link", "br", "input", "hr", "img"}
LIBRARY = re.compile(r'(?<=<script type="text/plain" id="plotly">)[A-Za-z0-9+/=]*')
SOURCES = ["chat", "code", "sums"]


class Page(HTMLParser):
    """Elements of a page, failing on tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.feed(LIBRARY.sub("", html))  # two megabytes of base64 that no test here reads
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((tuple(self.open), data))

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.elements if "id" in attributes]

    def words(self) -> str:
        """The text a reader sees, with single spaces."""
        seen = (data for where, data in self.texts if not {"script", "style"} & set(where))
        return " ".join(" ".join(seen).split())


def embedded(html: str, name: str) -> Any:
    """The JSON of a data element of the page."""
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def make_data(rows: int = 600, k: int = 60, seed: int = 0, **changes: Any) -> ReportData:
    random = np.random.default_rng(seed)
    source = random.choice(3, rows, p=[0.6, 0.3, 0.1])
    cluster = random.integers(0, 6, rows)
    order = random.choice(rows, k, replace=False)
    chosen_mask = np.zeros(rows, bool)
    chosen_mask[order] = True
    length = random.integers(20, 2000, rows)
    pool = pa.table({
        "index": np.arange(rows), "source": np.array(SOURCES)[source], "length": length,
        "response_length": length // 3, "loss": random.gamma(3, 0.5, rows),
        "gradient_norm": random.gamma(2, 1, rows).astype(np.float32), "cluster": cluster, "chosen": chosen_mask,
    })  # fmt: skip
    chosen = pool.take(pa.array(order)).drop(["chosen"])
    columns = {
        "rank": np.arange(k), "weight": random.random(k), "score": random.random(k),
        "path": [f"{SOURCES[source[i]]}.jsonl" for i in order], "line": order + 1,
    }  # fmt: skip
    for name, values in columns.items():
        chosen = chosen.append_column(name, pa.array(values))
    examples = [
        ExampleView(
            rank, int(i), SOURCES[source[i]], int(cluster[i]), 0.5, 0.1, 1.2,
            [("Question: ", False), (f"answer {i}", True)], "a.jsonl", int(i) + 1,
        )
        for rank, i in enumerate(order)
    ]  # fmt: skip
    clusters = [
        ClusterView(c, int((cluster == c).sum()), int((cluster[order] == c).sum()), [1 / (s + 1) for s in range(8)])
        for c in range(6)
    ]
    values: dict[str, Any] = {
        "title": "three sources", "method": "tagcos", "budget": k, "pool_size": rows, "pool": pool, "chosen": chosen,
        "settings": {"select": {"clusters": 6, "ridge": 1.0}}, "versions": {"torch": "2.13.0"},
        "timings": [("encode", 2.0, "quick"), ("features", 180.0, "")], "examples": examples, "clusters": clusters,
        "residuals": {"whole pool": [0.9, 0.5, 0.25]},
        "near_duplicates": [NearDuplicate(1, 2, 0.987, "two plus two", "two plus three")], "duplicates_in_pool": 7,
        "map": GradientMap(random.normal(size=(rows, 2)), chosen_mask, cluster, [f"row {i}" for i in range(rows)]),
        "refused": [("a.jsonl", 3, "the response is empty")], "refused_total": 4,
        "cost": {"selection_seconds": 60.0, "subset_training_seconds": 40.0, "full_training_seconds": 1000.0},
        "warnings": ["something is odd"], "model": "tiny-llama",
    }  # fmt: skip
    return ReportData(**(values | changes))


def features_only(rows: int = 50, k: int = 5) -> ReportData:
    """What is known when somebody brings a matrix of features and nothing else."""
    pool = pa.table({"source": pa.array([""] * rows), "loss": pa.array([float("nan")] * rows)})
    chosen = pa.table({"source": [""] * k, "rank": list(range(k)), "index": list(range(k)), "weight": [1.0] * k})
    return ReportData(title="x", method="random", budget=k, pool_size=rows, pool=pool, chosen=chosen)


def terminal(data: ReportData, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal_summary(data))
    return console.export_text()
