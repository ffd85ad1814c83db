"""Made-up report data, and a reader of the page, for the tests of the report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from pursuit.report import (
    AgreementData,
    AgreementEntry,
    ClusterView,
    DirectionView,
    ExampleView,
    GradientMap,
    MethodPairs,
    NearDuplicate,
    NeighbourView,
    ReportData,
    TargetView,
    terminal_summary,
)
from pursuit.report.comparison import CompareData, Interval, MethodScore, MetricScores
from pursuit.report.online import OnlineData

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
            [("Question: ", False), (f"answer {i}", True)], "a.jsonl", int(i) + 1, [f"Its place is {rank}."],
            NeighbourView(7, 0.912, "chat", [("Question: ", False), ("another answer", True)], "b.jsonl", 8),
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
        "residuals": {"whole pool": [0.9, 0.5, 0.25], "most similar": [0.6, 0.6, 0.6]}, "step": "iteration",
        "support_changes": {"whole pool": [30, 4, 0]}, "parts": [("reading", 0.5), ("fitting", 2.0)],
        "directions": [
            DirectionView(name, 0.2, 0.3, 0.4, ["the first text", "the second text"]) for name in ("1+", "1−")
        ],
        "scripts": [("Latin", 80, 8), ("Cyrillic", 20, 2)], "scripts_note": "Among 100 of the pool and 10 chosen.",
        "targets": [TargetView("arithmetic", 40, 30, 30, 0.31), TargetView("reading", 25, 30, 29, 0.42)],
        "method_pairs": [
            MethodPairs("joint", 0), MethodPairs("similar", 9, [NearDuplicate(0, 3, 0.98, "one", "two", 12, 40)]),
        ],
        "agreement": AgreementData(
            [AgreementEntry("another seed", 0.75, 0.93), AgreementEntry("checkpoint 1 alone", 0.5, 0.8)], 0.1, 0.4,
            [AgreementEntry("the two halves with each other", 0.6, 0.7)], [("checkpoint 2 alone", "out of time")],
            ["What the entries mean."],
        ),
        "price_per_hour": 3.6, "currency": "EUR", "neighbours_note": "Looked for among all.",
        "near_duplicates": [NearDuplicate(1, 2, 0.987, "two plus two", "two plus three")], "duplicates_in_pool": 7,
        "map": GradientMap(
            random.normal(size=(rows, 2)), chosen_mask, cluster, [f"text {i}" for i in range(rows)], np.arange(rows)
        ),
        "refused": [("a.jsonl", 3, "the response is empty")], "refused_total": 4,
        "cost": {"selection_seconds": 60.0, "subset_training_seconds": 40.0, "full_training_seconds": 1000.0},
        "warnings": ["something is odd"], "model": "tiny-llama",
    }  # fmt: skip
    return ReportData(**(values | changes))


HOSTILE = (
    "</script><script>alert(1)</script><!-- \"'&amp; \u2028\u2029 \x00\x1b[31m\ud800 ]]> <img src=x onerror=alert(2)>"
)


def hostile_data(text: str) -> ReportData:
    data = make_data(rows=40, k=8)
    broken = data.pool.set_column(1, "source", pa.array([text.encode("utf-8", "replace").decode()] * 20 + ["b"] * 20))
    neighbour = NeighbourView(2, 0.9, text, [(text, True)], text, 4)
    example = ExampleView(
        0, 1, text, 2, 0.5, float("nan"), 1.0, [(text, False), (text, True)], text, 3, [text], neighbour
    )
    return replace(
        data, title=text, method=text, model=text, pool=broken, examples=[example], warnings=[text],
        settings={text: {text: [text]}}, versions={text: text}, timings=[(text, 1.0, text)],
        near_duplicates=[NearDuplicate(0, 1, 0.9, text, text + "x")], refused=[(text, 1, text)],
        residuals={text: [1.0, 0.5]}, support_changes={text: [2, 1]}, parts=[(text, 1.0)], scripts=[(text, 4, 2)],
        scripts_note=text, neighbours_note=text, near_duplicates_note=text, currency=text,
        directions=[DirectionView(text, 0.1, 0.2, 0.3, [text])], targets=[TargetView(text, 3, 2, 1, 0.5)],
        method_pairs=[MethodPairs(text, 1, [NearDuplicate(0, 1, 0.9, text, text + "x", 3, 4)])],
        agreement=AgreementData([AgreementEntry(text, 0.5, 0.5)], 0.1, 0.2, [], [(text, text)], [text]),
        map=GradientMap(np.zeros((2, 2)), np.array([True, False]), np.zeros(2), [text, text]),
    )  # fmt: skip


def features_only(rows: int = 50, k: int = 5) -> ReportData:
    """What is known when somebody brings a matrix of features and nothing else."""
    pool = pa.table({"source": pa.array([""] * rows), "loss": pa.array([float("nan")] * rows)})
    chosen = pa.table({"source": [""] * k, "rank": list(range(k)), "index": list(range(k)), "weight": [1.0] * k})
    return ReportData(title="x", method="random", budget=k, pool_size=rows, pool=pool, chosen=chosen)


def make_comparison(text: str = "", seeds: int = 3) -> CompareData:
    """Invented scores of three methods at two budgets, on two metrics; `text` is added to every name."""

    def score(method: str, budget: float, value: float, gap: float) -> MethodScore:
        return MethodScore(
            method=method if method == "random" else method + text, budget=budget, rows=round(1000 * budget),
            seeds=seeds, score=Interval(value, value - 0.01, value + 0.01), gain_kept=(value - 0.2) / 0.2,
            to_random=None if method == "random" else Interval(gap, gap - 0.02, gap + 0.02),
            selection_seconds=0.0 if method == "random" else 600.0, training_seconds=7200.0 * budget,
            families={"sums" + text: value + 0.05, "chat": value - 0.05},
        )  # fmt: skip

    scores = [
        score("tagcos", 0.01, 0.30, 0.05), score("less", 0.01, 0.26, 0.01), score("random", 0.01, 0.25, 0.0),
        score("tagcos", 0.05, 0.39, 0.04), score("less", 0.05, 0.31, -0.04), score("random", 0.05, 0.35, 0.0),
    ]  # fmt: skip
    full = MethodScore(
        method="full", budget=1.0, rows=1000, seeds=seeds, score=Interval(0.4, 0.39, 0.41), gain_kept=1.0,
        training_seconds=7200.0, families={"sums" + text: 0.45, "chat": 0.35},
    )  # fmt: skip
    return CompareData(
        title="invented" + text, model="tiny-llama" + text, evaluation="two families" + text, pool_size=1000,
        metrics=[
            MetricScores(name="exact match" + text, unit="share of rows", scores=scores, untrained=0.2, full=full),
            MetricScores(name="loss", unit="nats per token", scores=scores, higher_is_better=False),
        ],
        runs=pa.table({
            "method": ["tagcos" + text.encode("utf-8", "replace").decode(), "random"], "seed": [0, 1],
            "score": [0.3, None],
        }),
        failed=[("less 5%" + text, "out of memory")], settings={"steps" + text: "equal"}, price_per_hour=2.0,
        currency="USD", warnings=["something is odd" + text],
    )  # fmt: skip


def terminal(data: ReportData, width: int = 100) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal_summary(data))
    return console.export_text()


def make_online(steps: int = 10, **changes: Any) -> OnlineData:
    return OnlineData(**{
        "title": "a training", "selector": "optbatch", "model": "tiny-llama", "settings": {"prune": 0.5},
        "versions": {"torch": "2.13.0"}, "steps": [
            {
                "step": step + 1, "candidates": 8, "kept": 4, "kept_stratum_0": 1, "kept_stratum_1": 3,
                "candidate_loss": 3.0 - step / 10, "kept_loss": 4.0 - step / 10, "spread": 0.5, "seconds": 0.25,
                "step_seconds": 1.0, "flops_spent": 80.0, "flops_saved": 20.0, "dropped": 0,
            }
            for step in range(steps)
        ],
        **changes,
    })  # fmt: skip
