"""Comparing methods: every cell really trains and is scored, nothing is done twice, and the table says what it says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from pursuit import Run
from pursuit.compare import Comparison, compare
from pursuit.compare.plan import cells, parse_method, split_methods
from pursuit.compare.results import interval
from pursuit.errors import DataError, PursuitError, SelectionError, SettingsError
from pursuit.finetune import FineTune
from test_run import SMALL, place, run_main, write_rows  # noqa: F401  (place is a fixture)
from tiny import CHATML, tiny_model, tiny_tokenizer

TRAIN = FineTune(max_steps=3, batch_size=4, learning_rate=1e-2)


@pytest.fixture(scope="module")
def begun(place):  # noqa: F811
    folder = place / "compare"
    folder.mkdir()
    write_rows(folder / "heldout.jsonl", 12, seed=9)
    run = Run(folder / "run", model=place / "model", pool=place / "pool.jsonl", **SMALL)
    run.extract()
    return run, folder


def settings(folder, **changes):
    return Comparison(**{
        "methods": ["tagcos(clusters=3)", "kcenter"], "budgets": ["10%"], "seeds": 2, "train": TRAIN,
        "evaluation": [str(folder / "heldout.jsonl")], **changes,
    })  # fmt: skip


@pytest.fixture(scope="module")
def compared(begun):
    run, folder = begun
    return compare(run, settings(folder), folder / "out")


def test_every_cell_is_trained_and_scored(compared):
    rows = compared.runs.to_pylist()
    names = sorted((row["method"], row["seed"]) for row in rows)
    methods = ("full", "kcenter", "random", "tagcos(clusters=3)")
    assert names == sorted([*((method, seed) for method in methods for seed in (0, 1)), ("untrained", 0)])
    assert not any(row["failed"] for row in rows)
    untrained = next(row for row in rows if row["method"] == "untrained")
    for row in rows:
        assert np.isfinite(row["score.loss"])
        if row is not untrained:
            assert row["score.loss"] != untrained["score.loss"]
            assert row["steps"] == 3, "all trainings have the same number of steps"
            assert row["rows"] == (120 if row["method"] == "full" else 12)


def test_the_page_shows_what_the_runs_say(compared):
    (block,) = compared.data.metrics
    rows = compared.runs.to_pylist()
    score = {(row["method"], row["seed"]): row["score.loss"] for row in rows}
    for found in block.scores:
        mine = [score[found.method, seed] for seed in (0, 1)]
        assert found.score.mean == pytest.approx(np.mean(mine))
        if found.method != "random":
            paired = [score[found.method, seed] - score["random", seed] for seed in (0, 1)]
            assert found.to_random.mean == pytest.approx(np.mean(paired))
        start, whole = score["untrained", 0], interval([score["full", 0], score["full", 1]])
        kept = pytest.approx((np.mean(mine) - start) / (whole.mean - start))
        assert found.gain_kept == (kept if start > whole.high else None), "a share of a gain that there is"
        assert (found.selection_seconds > 0, found.training_seconds > 0) == (True, True)
    text = compared.report.read_text()
    assert "tagcos" in text
    assert pq.read_table(compared.table).num_rows == len(rows)


def test_the_selections_of_the_run_itself_are_left_alone(begun, compared):
    """A name's beginning would fit more of them after a comparison than before."""
    run, _ = begun
    assert not run.folder.selections.exists()


def test_what_stands_is_not_done_again_and_a_lost_cell_is(begun, compared, monkeypatch):
    run, folder = begun
    trained, chosen = [], []
    import pursuit.compare.work as module

    choose = run.choose
    monkeypatch.setattr(run, "choose", lambda *a, **k: chosen.append(a[0].name) or choose(*a, **k))

    original = module.finetune
    monkeypatch.setattr(module, "finetune", lambda *a, **k: trained.append(a[2].parent.name) or original(*a, **k))
    again = compare(run, settings(folder), folder / "out")
    assert (trained, chosen) == ([], [])
    assert again.runs == compared.runs
    lost = next((folder / "out" / "cells").glob("kcenter-10%-seed1-*"))
    shutil.rmtree(lost)
    damaged = next((folder / "out" / "selections").glob("tagcos*-10%-seed1-*"))
    (damaged / "selection.safetensors").write_bytes(b"cut")
    redone = compare(run, settings(folder), folder / "out")
    assert (trained, chosen) == ([lost.name], ["tagcos"])
    scores = [name for name in redone.runs.column_names if name.startswith("score")]
    assert redone.runs.select(scores) == compared.runs.select(scores)


def test_another_model_is_trained_on_what_the_first_chose(begun, tmp_path):
    run, folder = begun
    tiny_model("gpt2", seed=3).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    wanted = settings(
        folder, methods=["kcenter"], seeds=1, train_model=str(tmp_path / "other"), metrics=["loss", "exact"],
        optimizers=["adamw_torch", "sgd"],
    )  # fmt: skip
    found = compare(run, wanted, tmp_path / "out")
    assert [block.name for block in found.data.metrics] == [
        f"{metric}, {optimizer}, linear" for metric in ("loss", "exact") for optimizer in ("adamw_torch", "sgd")
    ]
    assert found.data.model.endswith("other")
    assert found.data.select_model.endswith("model")
    assert not [row for row in found.runs.to_pylist() if row["failed"]]


def test_a_model_that_cannot_read_all_rows_is_trained_on_those_it_can(begun, tmp_path):
    """To its tokenizer prompts that begin with a c are too long; the share is that of the run's rows all the same."""
    run, folder = begun
    tiny_model("gpt2", seed=3).save_pretrained(tmp_path / "other")
    tokenizer = tiny_tokenizer()
    longer = "+ 'x ' * (message.role == 'user' and message.content[0] == 'c') * 2000 + message['content']"
    tokenizer.chat_template = CHATML.replace("+ message['content']", longer)
    tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "sea", "response": "wind"}\n' * 3)
    wanted = settings(
        folder, methods=["kcenter"], budgets=[119], seeds=1, train_model=str(tmp_path / "other"),
        evaluation=[str(tmp_path / "heldout.jsonl")],
    )  # fmt: skip
    found = compare(run, wanted, tmp_path / "out")
    rows = {row["method"]: row["rows"] for row in found.runs.to_pylist()}
    assert 0 < rows["kcenter"] <= rows["full"] < 119
    assert {score.budget for score in found.data.metrics[0].scores} == {119 / 120}


def test_a_model_without_a_template_is_trained_with_a_given_one(begun, tmp_path):
    run, folder = begun
    tiny_model("gpt2", seed=3).save_pretrained(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    plain = settings(folder, methods=["kcenter"], seeds=1, train_model=str(tmp_path / "base"))
    with pytest.raises(PursuitError, match="chat template"):
        compare(run, plain, tmp_path / "out")
    found = compare(run, replace(plain, train_template="chatml"), tmp_path / "out")
    assert not [row for row in found.runs.to_pylist() if row["failed"]]
    with pytest.raises(SettingsError, match="train_template"):
        settings(folder, train_template="chatml")


def test_a_cell_that_fails_is_named_and_the_others_stand(begun, tmp_path, monkeypatch):
    run, folder = begun
    import pursuit.compare.work as module

    original = module.finetune

    def failing(model, rows, place, *rest, **more):  # noqa: F811
        if "kcenter" in place.parent.name:
            raise DataError("this one cannot be trained on.")
        return original(model, rows, place, *rest, **more)

    monkeypatch.setattr(module, "finetune", failing)
    found = compare(run, settings(folder, methods=["kcenter"], seeds=1), tmp_path / "out")
    assert [name for name, _ in found.data.failed] == ["kcenter-10%-seed0"]
    assert "cannot be trained on" in found.report.read_text()
    monkeypatch.setattr(module, "finetune", original)
    assert not compare(run, settings(folder, methods=["kcenter"], seeds=1), tmp_path / "out").data.failed


def test_mistakes_are_found_before_anything_is_trained(begun, monkeypatch):
    run, folder = begun
    import pursuit.compare.work as module

    monkeypatch.setattr(module, "finetune", lambda *_, **__: pytest.fail("a model was trained"))
    for changes, error, message in (
        ({"methods": ["tagcoss"]}, SettingsError, "tagcos"),
        ({"methods": ["less"]}, SelectionError, "needs a target"),
        ({"budgets": ["0%"]}, SettingsError, "budget"),
        ({"metrics": ["lose"]}, SettingsError, "loss"),
        ({"scorers": ["nowhere:f"]}, SettingsError, "nowhere"),
        ({"optimizers": ["sgd", "adamm"]}, SettingsError, "'adamm' is not known"),
        ({"optimizers": ["galore_adamw"]}, SettingsError, "'galore_adamw' cannot be used here"),
        ({"evaluation": [str(folder / "no.jsonl")]}, DataError, "no.jsonl"),
        ({"methods": []}, SettingsError, "methods"),
        ({"seeds": 0}, SettingsError, "seeds"),
    ):
        with pytest.raises(error, match=message):
            compare(run, settings(folder, **changes), folder / "mistakes")


def test_the_command(begun, tmp_path, capsys):
    run, folder = begun
    code, text = run_main(
        "compare", "--run", run.folder.path, "--methods", "longest,random", "--budgets", "5%,10%", "--seeds", 1,
        "--eval", folder / "heldout.jsonl", "--steps", 2, "--batch-size", 4, "--out", tmp_path / "out",
        "--price-per-hour", 3, "--currency", "EUR", capsys=capsys,
    )  # fmt: skip
    assert code == 0, text
    assert "Money: 3.00 EUR an hour." in (tmp_path / "out" / "comparison.html").read_text(encoding="utf-8")
    assert "longest" in text
    assert "gain kept" in text
    names = {json.loads(path.read_text())["name"] for path in (tmp_path / "out" / "cells").glob("*/cell.json")}
    assert names == {
        "untrained", "full-seed0", "longest-5%-seed0", "longest-10%-seed0", "random-5%-seed0", "random-10%-seed0",
    }  # fmt: skip


def test_intervals_are_students():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.high - found.mean == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert not interval([1.0]).known
    assert not interval([0.25, 0.25, 0.25]).known, "shares that agree by chance would have no width"


def test_methods_are_read_with_their_parameters():
    assert split_methods(["tagcos(clusters=5, tol=0),gtp", "less"]) == ["tagcos(clusters=5, tol=0)", "gtp", "less"]
    assert parse_method("tagcos(clusters=5, ridge=0.1)") == ("tagcos", {"clusters": "5", "ridge": "0.1"})
    assert parse_method('less(quotas="a=2,b=1", x=3)') == ("less", {"quotas": "a=2,b=1", "x": "3"})
    assert parse_method("gtp") == ("gtp", {})
    with pytest.raises(SettingsError, match="name=value"):
        parse_method("tagcos(5)")
    with pytest.raises(SettingsError, match="brackets"):
        parse_method("tagcos(clusters=5")


def test_ways_of_training_multiply_the_cells():
    ways = {"optimizers": ["sgd", "adafactor"], "schedules": ["linear", "cosine"]}
    wanted = Comparison(["gtp"], ["5%"], ["x"], seeds=3, **ways)
    assert len(cells(wanted)) == 1 + 3 * 4 * (1 + 2)
