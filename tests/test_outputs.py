"""Outputs never take the place of what is read, and a place that cannot be written is an error with its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pursuit import Features, Run, Selection, Tagcos
from pursuit.cli.commands import select_from_arrays
from pursuit.errors import PursuitError, SettingsError, StoreError
from pursuit.inspection import inspect
from pursuit.selectors import Random, Selector
from pursuit.warmup.trajectory import Trajectory
from test_run import SMALL, place, run_main, write_rows  # noqa: F401  (place is a fixture)

QUICK = ("--steps", 1, "--batch-size", 2)


@pytest.fixture(scope="module")
def finished(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A run with a target and two selections, all of its inputs beside it."""
    folder = tmp_path_factory.mktemp("outputs")
    shutil.copytree(place / "model", folder / "model")
    write_rows(folder / "pool.jsonl", 40, seed=1)
    write_rows(folder / "target.jsonl", 5, seed=2)
    run = Run(
        folder / "run", model=folder / "model", pool=folder / "pool.jsonl", target=folder / "target.jsonl", **SMALL
    )
    run.select("random", 10, out=folder / "subset.jsonl")
    run.select("random", 5, out=folder / "subset.jsonl")
    return folder


def inputs(folder: Path) -> dict[Path, bytes]:
    read = [folder / "pool.jsonl", folder / "target.jsonl", *(folder / "model").iterdir()]
    return {path: path.read_bytes() for path in read}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("select --run {0}/run --method random --budget 3 --out {0}/pool.jsonl", "would overwrite what is read"),
        ("select --run {0}/run --method random --budget 3 --out {0}/target.jsonl", "would overwrite what is read"),
        ("select --run {0}/run --method random --budget 3 --out {0}/model/x.jsonl", "would overwrite what is read"),
        ("export --subset {0}/subset.jsonl --to trl --out {0}/pool.jsonl", "would overwrite what is read"),
        ("report --run {0}/run --selection random-5 --out {0}/pool.jsonl", "the page is HTML"),
        ("finetune --run {0}/run --subset {0}/subset.jsonl --out {0}/model --steps 1", "holds a model"),
        ("finetune --run {0}/run --subset {0}/subset.jsonl --out {0}/run --steps 1", "holds a run"),
        ("select --run {0}/run --method random --budget 3 --out {0}/pool.jsonl/x.jsonl", "pool.jsonl/x.jsonl"),
        ("select --run {0}/run --method random --budget 3 --out /proc/x.jsonl", "/proc"),
        ("export --subset {0}/subset.jsonl --to trl --out {0}/pool.jsonl/x.jsonl", "would overwrite what is read"),
        ("select --run {0}/run --method random --budget 3 --out {0}/a.jsonl", "is a folder"),
        ("export --subset {0}/subset.jsonl --to trl --out {0}/a.jsonl", "is a folder"),
        ("export --run {0}/run --selection random-5 --to trl --out {0}/a.jsonl", "is a folder"),
        ("export --run {0}/run --selection random-5 --to trl --out /proc/x.jsonl", "/proc: cannot be written"),
        ("evaluate --model {0}/model --eval {0}/target.jsonl --metrics loss --out {0}/pool.jsonl", "cannot be written"),
        ("evaluate --model {0}/model --eval {0}/target.jsonl --metrics loss --out /proc", "cannot be written"),
        ("finetune --run {0}/run --subset {0}/subset.jsonl --out {0}/pool.jsonl --steps 1", "cannot be written"),
        ("finetune --run {0}/run --subset {0}/subset.jsonl --out /proc/x --steps 1", "cannot be written"),
        ("compare --run {0}/run --methods random --budgets 5% --eval {0}/target.jsonl --out {0}/pool.jsonl",
         "cannot be written"),
    ],
)  # fmt: skip
def test_an_output_that_cannot_be_is_an_error_and_nothing_is_lost(
    finished: Path, arguments: str, message: str, capsys: Any
) -> None:  # fmt: skip
    before = inputs(finished)
    (finished / "a.jsonl").mkdir(exist_ok=True)
    code, error = run_main(*arguments.format(finished).split(), capsys=capsys)
    assert code == 2
    assert message in " ".join(error.split())
    assert inputs(finished) == before


@pytest.mark.parametrize("out", ["/proc/x.jsonl", "/proc/no/x.jsonl", "{0}/a.jsonl"])
def test_an_output_that_cannot_be_is_found_before_any_work(
    finished: Path, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").mkdir()
    run = Run(tmp_path / "run", model=finished / "model", pool=finished / "pool.jsonl", **SMALL)
    with pytest.raises(PursuitError, match=r"is a folder|/proc.*cannot be written"):
        run.select("random", 3, out=out.format(tmp_path))
    assert not (tmp_path / "run").exists()
    np.save(tmp_path / "features.npy", np.eye(4))
    monkeypatch.setattr(Random, "select", lambda *_, **__: pytest.fail("rows were chosen"))
    with pytest.raises(PursuitError, match=r"is a folder|/proc.*cannot be written"):
        select_from_arrays("random", 2, tmp_path / "features.npy", None, {}, Path(out.format(tmp_path)), {})


def test_a_pool_is_not_written_over_by_a_choice_from_features_of_ones_own(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "features.npy", np.eye(40))
    monkeypatch.setattr(Random, "select", lambda *_, **__: pytest.fail("rows were chosen"))
    pool = finished / "pool.jsonl"
    with pytest.raises(SettingsError, match="would overwrite what is read"):
        select_from_arrays("random", 2, tmp_path / "features.npy", None, {}, pool, {"pool": [str(pool)]})


def test_the_page_of_an_older_selection_does_not_take_the_place_of_the_present_ones(finished: Path) -> None:
    run, page = Run(finished / "run"), finished / "subset.report.html"
    present = page.read_bytes()
    older = next(path.parent for path in run.folder.selections.glob("random-10*/choice.json"))
    assert run.report(older) == older / "report.html"
    assert page.read_bytes() == present
    newer = next(path.parent for path in run.folder.selections.glob("random-5*/choice.json"))
    assert run.report(newer) == page


class FirstRows(Selector):
    """A method of one's own that the package has no name for."""

    name: ClassVar[str] = "first-rows"
    paper: ClassVar[str] = "nobody's"
    needs_features: ClassVar[bool] = False

    def _select(self, features: Features, budget: int, target: Features | None, seed: int) -> Selection:
        return self._selection(features, np.arange(budget))


def test_a_selectors_page_is_made_again_where_it_is_known_only(finished: Path) -> None:
    run = Run(finished / "run")
    page = run.select(FirstRows(), budget=3).report
    with pytest.raises(SettingsError, match=r"chosen by the selector 'first-rows', which this process does not know"):
        run.report("first-rows")
    page.unlink()
    assert run.select(FirstRows(), budget=3).report == page
    assert page.exists()


def test_a_damaged_checkpoint_is_made_again_by_warmup(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    run = Run(tmp_path / "run")
    run.warmup()
    weights = next((tmp_path / "run" / "warmup").glob("checkpoint-*/weights.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match=r"`pursuit warmup --run` makes it again"):
        Trajectory(tmp_path / "run" / "warmup").check()
    run.warmup()
    assert weights.read_bytes() == whole


def test_a_run_that_has_grown_is_inspected(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    write_rows(tmp_path / "more.jsonl", 20, seed=3)
    run = Run(tmp_path / "run")
    run.extract(append=tmp_path / "more.jsonl")
    assert inspect(tmp_path / "run", measure=False).pool.rows == 60


def test_damaged_seconds_stop_nothing(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    (tmp_path / "run" / "timings.json").write_text('{"encode": 1')
    assert len(Run(tmp_path / "run").select("random", 3).selection) == 3


def test_a_class_of_selectors_and_a_budget_of_either_kind_are_refused(finished: Path) -> None:
    run = Run(finished / "run")
    with pytest.raises(SettingsError, match=r"give a method's name, or such as Tagcos\(clusters=50\)"):
        run.select(Tagcos)
    for budget in (1.0, "1.0"):
        with pytest.raises(SettingsError, match="write 1 or 100%"):
            run.select("random", budget)
    assert len(run.select("random", 1).selection) == 1
    assert len(run.select("random", "100%").selection) == 40


def test_changed_files_are_told_from_a_changed_model(finished: Path, tmp_path: Path) -> None:
    for name in ("model", "run"):
        shutil.copytree(finished / name, tmp_path / name)
    shutil.copy(finished / "pool.jsonl", tmp_path / "pool.jsonl")
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    moved = {"model": str(tmp_path / "model"), "pool": [str(tmp_path / "pool.jsonl")]}
    (tmp_path / "run" / "settings.json").write_text(json.dumps(settings | moved))
    Run(tmp_path / "run").warmup()
    with (tmp_path / "pool.jsonl").open("a") as handle:
        handle.write('{"prompt": "one more", "response": "row"}\n')
    with pytest.raises(StoreError, match="the pool's files or how they are read have changed"):
        Run(tmp_path / "run").warmup()
