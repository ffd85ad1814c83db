"""What the report says about single rows is true: neighbours, reasons, scripts, pairs, directions."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pursuit import Features, Selection
from pursuit.export.subset import chosen_table
from pursuit.overview import report_data
from pursuit.overview.neighbours import near_duplicates, nearest_targets, unchosen_neighbours
from pursuit.overview.reasons import reasons
from pursuit.overview.scripts import script_counts, script_of
from pursuit.overview.space import direction_views, directions_of, sample_rows
from pursuit.overview.texts import Texts, shortened
from pursuit.selectors import method


def unit_rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def selection_of(indices, n, weights=None, name="test", **more) -> Selection:
    indices = np.asarray(indices)
    return Selection(indices, np.ones(len(indices)) if weights is None else weights, name, n, **more)


@pytest.mark.parametrize("checkpoints", [1, 3])
@pytest.mark.parametrize("dimension", [8, 900])  # below and above the length of a sketch
def test_the_unchosen_neighbour_is_the_row_of_highest_cosine_that_was_not_chosen(checkpoints, dimension):
    generator = np.random.default_rng(1)
    array = generator.normal(size=(300, checkpoints, dimension))
    array[200:260] = array[:60] + 0.3 * generator.normal(size=(60, checkpoints, dimension))  # each row has a neighbour
    features = Features.from_array(array)
    chosen = generator.permutation(60)
    found, note = unchosen_neighbours(selection_of(chosen, 300), features, chosen[:40])
    assert note == ""
    average = features.average()[np.arange(300)]
    average /= np.linalg.norm(average, axis=1, keepdims=True)
    others = np.setdiff1d(np.arange(300), chosen)
    for row in chosen[:40]:
        cosines = average[others] @ average[row]
        neighbour, cosine = found[int(row)]
        assert neighbour == others[cosines.argmax()]
        assert cosine == pytest.approx(cosines.max(), abs=1e-5)


def test_neighbours_in_a_large_pool_are_looked_for_in_a_sample_that_is_named(monkeypatch):
    monkeypatch.setattr("pursuit.overview.neighbours.CANDIDATE_NUMBERS", 1)
    features = Features.from_array(unit_rows(2500, 16))
    found, note = unchosen_neighbours(selection_of(range(100), 2500), features, np.arange(10))
    assert note == "It was looked for in a random 1,000 of the 2,400 others."
    assert len(found) == 10
    assert min(neighbour for neighbour, _ in found.values()) >= 100


def test_rows_that_were_left_out_beforehand_are_not_in_the_report():
    rows = unit_rows(60, 12)
    rows[30:] = rows[:30] + 0.01  # the left out are the nearest of all
    features = Features.from_array(rows, sources=["kept"] * 30 + ["left out"] * 30)
    made = selection_of(range(0, 30, 3), 60)
    data = report_data(
        made, features, chosen_table(made, features), settings={}, render=lambda row: [(f"row {row}", True)],
        keep=np.arange(60) < 30,
    )  # fmt: skip
    assert data.pool_size == 30
    assert set(data.pool["source"].to_pylist()) == {"kept"}
    assert max(example.neighbour.index for example in data.examples) < 30
    assert data.map.rows.max() < 30


def test_nothing_is_left_unchosen_or_all_rows_are_zero():
    features = Features.from_array(unit_rows(5, 4))
    assert unchosen_neighbours(selection_of(range(5), 5), features, np.arange(5)) == ({}, "")
    assert unchosen_neighbours(selection_of([0], 5), Features.from_array(np.zeros((5, 4))), np.arange(1)) == ({}, "")
    assert near_duplicates(selection_of([0, 1], 5), Features.from_array(np.zeros((5, 4))), str) == []


@given(st.integers(2, 40), st.integers(1, 300), st.integers(0, 5))
def test_near_duplicates_are_all_pairs_above_the_limit_unless_a_row_has_many(n, d, copies):
    rows = unit_rows(n, d)
    rows[n - min(copies, n // 2) :] = rows[: min(copies, n // 2)]
    features = Features.from_array(rows)
    average = features.average()[np.arange(n)]
    cosines = np.triu(average @ average.T, 1)
    wanted = {(a, b) for a, b in np.argwhere(cosines >= 0.95).tolist()}
    found = {(p.a_index, p.b_index) for p in near_duplicates(selection_of(range(n), n), features, str)}
    assert found <= {(a, b) for a, b in np.argwhere(cosines >= 0.95 - 1e-5).tolist()}
    crowded = {a for a in range(n) if sum(a in pair for pair in wanted) > 4}
    assert {pair for pair in wanted if not crowded & set(pair) and cosines[pair] > 0.951} <= found


def test_a_target_row_that_a_chosen_row_copies_is_its_nearest():
    pool, goal = unit_rows(20, 12), unit_rows(6, 12, seed=1)
    pool[4] = goal[3]
    nearest, cosines = nearest_targets(Features.from_array(pool), Features.from_array(goal), np.array([4]))
    assert nearest.tolist() == [3]
    assert cosines[0] == pytest.approx(1, abs=1e-6)


def test_reasons_of_tagcos_name_the_cluster_the_step_and_the_fall_of_the_residual():
    about = {"cluster": 7, "size": 40, "chosen": 2, "residuals": [0.8, 0.5], "pass_steps": [2]}
    columns = {"cluster": np.array([7, 7]), "step": np.array([0, 1]), "score": np.array([0.4, 0.9])}
    made = selection_of([3, 5], 50, name="tagcos", columns=columns, diagnostics={"clusters": [about]})
    first, second = reasons(made, [0, 1])
    cluster = "from cluster 7, which has 40 rows; it took what the cluster's centre leaves unexplained"
    assert first[0] == f"Choice 1 of 2 {cluster} from 1.00 to 0.80."
    assert second[0] == f"Choice 2 of 2 {cluster} from 0.80 to 0.50."
    assert second[1] == "Similarity to the centre of its cluster: 0.9, the highest among the chosen."


def test_reasons_of_gtp_name_the_target_the_pass_and_the_share_of_the_goal():
    columns = {"pass": np.array([0, 0, 1, -1]), "score": np.array([0.5, 0.25, 0.2, 0.1])}
    made = selection_of(range(4), 9, np.array([2.0, 2.0, 2.5, 0.0]), name="gtp", columns=columns)
    said = reasons(made, range(4))
    assert said[0][0].startswith("Chosen jointly")
    assert said[0][-1] == "Its weight times its similarity is 50.0% of what all reach along the goal."
    assert said[2][0] == "Chosen in pass 2, among the rows that the passes before it left."
    assert said[3] == ["Fills the budget, at weight 0: it is among the most similar of the rest.",
                       "Similarity to the goal: 0.1, the 4th highest among the chosen."]  # fmt: skip
    columns = {"target": np.array([1, 0])}
    targets = {"targets": [{"target": "bbh"}, {"target": "mmlu"}]}
    made = selection_of([4, 2], 9, name="gtp", columns=columns, diagnostics=targets)
    assert [sentences[0] for sentences in reasons(made, [0, 1])] == ["For the target mmlu.", "For the target bbh."]


def test_reasons_of_a_greedy_pursuit_name_the_fall_of_its_residual():
    features = Features.from_array(unit_rows(40, 12))
    made = method("omp").select(features, 4)
    curve = made.diagnostics["residuals"]["omp"]
    assert f"It took the residual from 1.000 to {curve[0]:.3f}." in reasons(made, [0])[0]
    assert f"It took the residual from {curve[1]:.3f} to {curve[2]:.3f}." in reasons(made, [2])[0]


@pytest.mark.parametrize("name", ["tagcos", "gtp", "omp", "less", "kcenter", "craig", "d2", "random", "stratified"])
def test_every_method_makes_a_report_with_texts_and_targets(name):
    array = np.random.default_rng(0).normal(size=(60, 2, 12))
    features = Features.from_array(array, sources=["a", "b", "c"] * 20)
    goal = Features.from_array(array[:8] + 0.1, sources=["one", "two"] * 4)
    selector = method(name)
    target = goal if selector.needs_target or selector.uses_target else None
    made = selector.select(features, 9, target=target)
    texts = [[("Say ", False), (f"number {row}", True)] for row in range(60)]
    data = report_data(
        made, features, chosen_table(made, features), settings={}, render=lambda row: texts[row], target=target,
        render_target=lambda row: [("target ", False), (f"row {row}", True)],
    )  # fmt: skip
    assert len(data.examples) == 9
    for example in data.examples:
        assert example.neighbour is not None
        assert example.neighbour.index not in made.indices
        assert example.segments == texts[example.index]
        assert any("main directions" in reason for reason in example.reasons)
        assert any("Of the target's rows" in reason for reason in example.reasons) == (target is not None)
    if name in ("gtp", "omp", "less"):
        assert [view.name for view in data.targets] == ["one", "two"]
        assert sum(view.chosen for view in data.targets) == 9
        assert set(data.chosen["target"].to_pylist()) <= {"one", "two"}
    if name == "gtp":
        assert data.step == "iteration"
        assert {"gtp: one", "gtp: two"} <= set(data.residuals)
        assert set(data.support_changes) == {"one", "two"}
        assert {part for part, _ in data.parts} >= {"fitting"}
        assert [pairs.method for pairs in data.method_pairs] == ["gtp", "most similar"]


def test_pairs_that_the_most_similar_rows_would_bring_are_shown_with_their_texts():
    generator = np.random.default_rng(3)
    rows = np.abs(generator.normal(size=(200, 30)))
    rows[100:] = rows[:100]  # every row twice
    features = Features.from_array(rows)
    made = method("gtp").select(features, 12)
    texts = [[(f"text {row % 100}", True)] for row in range(200)]
    data = report_data(made, features, chosen_table(made, features), settings={}, render=lambda row: texts[row])
    ours, similar = data.method_pairs
    assert similar.total >= 5 > ours.total == 0
    assert all(pair.a_text == pair.b_text and pair.b_index == pair.a_index + 100 for pair in similar.pairs)


def test_the_ends_of_the_directions_hold_the_rows_that_lie_furthest_along_them():
    generator = np.random.default_rng(2)
    rows = 0.01 * generator.normal(size=(400, 20))
    rows[:200, 0] += 1
    rows[200:, 0] -= 1
    rows[::20, 1] += 0.3
    features = Features.from_array(rows, normalise=False)
    sample = sample_rows(selection_of(range(40), 400), np.arange(400))
    found = directions_of(features, sample.rows)
    views = direction_views(sample, found, Texts(lambda row: [("one" if row < 200 else "two", True)]))
    first = {view.name: view for view in views[:2]}
    assert {tuple(view.texts) for view in first.values()} == {("one",), ("two",)}
    assert first["1+"].variance > 0.9
    assert first["1+"].pool + first["1−"].pool == pytest.approx(1, abs=0.05)
    assert max(first["1+"].chosen, first["1−"].chosen) == 1  # all chosen rows are on one side
    ends, cosines = found.nearest(features.average()[np.array([0, 399])].astype(np.float64))
    assert {int(end) for end in ends} == {0, 1}
    assert cosines.min() > 0.9


SCRIPTS = {
    "The capital of France is Paris.": "Latin", "Столица Франции — Париж.": "Cyrillic", "法国的首都是巴黎。": "Han",
    "フランスの首都はパリです。": "Japanese", "프랑스의 수도는 파리입니다.": "Hangul", "عاصمة فرنسا هي باريس": "Arabic",
    "पेरिस फ्रांस की राजधानी है": "Devanagari", "42 + 7 = 49": "no letters", "": "no letters",
    "def add(a, b):\n    return a + b\nprint(add(1, 2))": "code-like",
    "Paris это столица страны France, capital": "mixed",
    "Dear all;\nthe meeting is on Monday.\nIt begins at ten.\nBring your notes.": "Latin",
}  # fmt: skip


@pytest.mark.parametrize(("text", "script"), SCRIPTS.items(), ids=range(len(SCRIPTS)))
def test_the_script_of_a_text(text, script):
    assert script_of(text) == script


@given(st.text())
def test_any_text_has_a_script(text):
    assert script_of(text)


def test_scripts_are_those_of_the_responses():
    rows = [[("<|im_start|>user\nTranslate into Russian: good day", False), ("Добрый день<|im_end|>", True)]] * 3
    rows += [[("Сколько будет два плюс два?", False), ("four", True)]]
    counts = script_counts(lambda row: rows[row], [0, 1, 2, 3], [3])
    assert counts == [("Cyrillic", 3, 0), ("Latin", 1, 1)]


def test_short_texts_show_the_end_of_the_prompt_and_the_beginning_of_the_response():
    chat = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    assert shortened([(chat, False), ("Well.<|im_end|>", True)]) == "How are you? → Well."
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    llama = head.format("user") + "Who?<|eot_id|>" + head.format("assistant")
    assert shortened([(llama, False), ("Me.<|eot_id|>", True)]) == "Who? → Me."
    assert shortened([("plain text", True)]) == "plain text"
    long = shortened([("p" * 500 + "END", False), ("START" + "r" * 500, True)])
    assert "END → START" in long
    assert len(long) < 260


def test_a_hundred_thousand_rows_take_little_time():
    """The neighbours of the shown rows: at most two seconds of one core for 100,000 rows of 512 numbers."""
    rows = np.random.default_rng(0).normal(size=(2_000, 512)).astype(np.float32)

    class Repeated:
        shape = (100_000, 512)

        def __getitem__(self, places):
            return rows[np.arange(100_000)[places] % 2_000]

    unknown = np.full((1, 100_000), np.nan, np.float32)
    table = pa.table({"index": np.arange(100_000), "source": pa.array(["a"] * 100_000)})
    features = Features([Repeated()], np.ones(1), table, unknown, unknown)
    made = selection_of(np.arange(0, 100_000, 20), 100_000)
    started = time.process_time()
    found, note = unchosen_neighbours(made, features, made.indices[:500])
    assert time.process_time() - started < 2
    assert len(found) == 500
    assert "50,000 of the 95,000" in note
