"""On a Ray cluster: the same bits as in this process, for any number of workers, also when one is killed."""

from __future__ import annotations

import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engine_work import die_on_seven, die_once, refuse, square, sums, whose
from pursuit import Features, Gtp, KCenter, Omp, Run, Tagcos
from pursuit.engine import engine_for
from pursuit.engine.ray_engine import _running
from pursuit.errors import DataError, RunError, SettingsError, StoreError
from pursuit.run.folder import RunFolder
from pursuit.run.given import Given
from pursuit.run.stages import Stages
from pursuit.solvers.rows import map_blocks
from test_run import SMALL, run_main, write_rows
from tiny import tiny_model, tiny_tokenizer

ray = pytest.importorskip("ray", reason="engine ray needs one more package: pip install ray")


@pytest.fixture(scope="module")
def cluster():
    """A Ray of this machine that believes in 6 processors: room for 2, 3 and 1 workers at once."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}  # the workers import engine_work
    ray.init(num_cpus=6, include_dashboard=False, object_store_memory=256 << 20, logging_level="ERROR",
             log_to_driver=False, runtime_env=here)  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def two(cluster, tmp_path_factory):
    running = engine_for("ray", workers=2, folder=tmp_path_factory.mktemp("shared"))
    yield running
    running.close()


@pytest.fixture(scope="module", params=[1, 2, 3], ids="{} workers".format)
def engine(request, two):
    running = two if request.param == 2 else engine_for("ray", workers=request.param)
    yield all_started(running)
    if running is not two:
        running.close()


def all_started(engine):
    while len(engine.processes()) < engine.workers:
        list(engine.map(square, range(2)))
    return engine


def test_a_pass_runs_on_all_workers(engine):
    found = [process for _, _, process in map_blocks(engine.spread(np.zeros((900, 2))), whose, 10)]
    assert set(found) == {process for process, _ in engine.processes()}
    assert len(set(found)) == engine.workers


def test_asked_for_again_the_workers_are_the_same_until_they_are_stopped(cluster, tmp_path):
    """A second run in one process must not wait for what the workers of the first hold."""
    first = engine_for("ray", workers=1, device="cpu")
    second = engine_for("ray", workers=1, device="cpu", folder=tmp_path)
    assert (first.folder, second.folder) == (None, tmp_path)
    (worker,), (again,) = all_started(first).processes(), all_started(second).processes()
    assert worker == again
    second.close()
    with pytest.raises(RunError, match="were stopped"):
        list(first.map(square, range(2)))
    third = engine_for("ray", workers=1, device="cpu")
    assert all_started(third).processes() != [worker]
    third.close()


def test_a_pass_with_a_worker_killed_in_it_gives_every_block_once(two, tmp_path):
    matrix = np.arange(900.0)[:, None]
    found = list(map_blocks(two.spread(matrix), partial(die_once, tmp_path / "died"), 10))
    assert found == [(start, start + 10, start) for start in range(0, 900, 10)]
    assert (tmp_path / "died").exists()
    all_started(two)


def test_results_come_in_order_with_progress_also_when_a_worker_is_killed(two):
    told: list[float] = []
    results = two.map(square, range(12), told.append)
    found = [next(results)]
    (victim, _), *_ = two.processes()
    os.kill(victim, signal.SIGKILL)
    found += results
    assert found == [item * item for item in range(12)]
    assert sum(told) == 36
    assert victim not in [process for process, _ in two.processes()]


def test_an_error_comes_back_as_itself(two):
    with pytest.raises(DataError, match=r"^pool\.jsonl, line 7: no brace$") as caught:
        list(two.map(refuse, range(6)))
    assert (caught.value.reason, caught.value.line) == ("no brace", 7)
    assert list(two.map(refuse, range(3))) == [0, 1, 2]


@pytest.mark.slow
def test_work_that_kills_every_worker_ends_with_a_word_about_it(two, monkeypatch):
    monkeypatch.setattr("pursuit.engine.ray_pool.MOST_DEATHS", 2)
    with pytest.raises(RunError, match="2 workers died one after another over the same piece of work"):
        list(two.map(die_on_seven, range(5, 9)))
    assert list(two.map(die_on_seven, range(3))) == [0, 1, 2]


@pytest.mark.parametrize("block_rows", [1, 7, 100, 5000])
def test_passes_over_a_matrix_give_the_same_blocks_in_the_same_order(two, block_rows):
    matrix = np.random.default_rng(0).normal(size=(643, 9)).astype(np.float32)
    spread = two.spread(matrix)
    there, here = ([(*bounds, first, total.tobytes()) for *bounds, (first, total) in
                    map_blocks(m, partial(sums, 0.3), block_rows)] for m in (spread, matrix))  # fmt: skip
    assert there == here
    np.testing.assert_array_equal(spread[[5, 2]], matrix[[5, 2]])
    assert two.spread(spread) is spread


def test_a_matrix_in_a_file_is_read_there_by_the_workers(two, tmp_path):
    matrix = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (300, 4))
    matrix[:] = np.random.default_rng(1).normal(size=matrix.shape)
    spread = two.spread(matrix)
    for (_, _, there), (_, _, here) in zip(map_blocks(spread, partial(sums, 1.0), 16),
                                           map_blocks(matrix, partial(sums, 1.0), 16), strict=True):  # fmt: skip
        np.testing.assert_array_equal(there[1], here[1])
    gone = two.spread(np.lib.format.open_memmap(tmp_path / "gone.npy", "w+", np.float32, (300, 4)))
    (tmp_path / "gone.npy").unlink()
    with pytest.raises(StoreError, match=r"gone\.npy: cannot be read on .*all machines of the cluster share"):
        list(map_blocks(gone, partial(sums, 1.0), 16))


def own_features(seed: int, rows: int, checkpoints: int = 2, dimension: int = 24) -> Features:
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(12, checkpoints, dimension))
    array = centres[generator.integers(0, 12, rows)] + 0.7 * generator.normal(size=(rows, checkpoints, dimension))
    array[5] = array[rows // 2]  # equal rows, whose order rounding must not decide
    return Features.from_array(array, weights=np.arange(1, checkpoints + 1.0))


SELECTORS = [
    Tagcos(clusters=12), Gtp(), Gtp(subspace=8, sample=1500), Gtp(subspace=8, memory_bytes=1 << 20, rows="raw"),
    Omp(subspace=8), KCenter(),
]  # fmt: skip


@pytest.mark.parametrize("selector", SELECTORS, ids=lambda s: f"{s.name} {s.model_dump(exclude_defaults=True)}")
def test_the_same_rows_and_weights_as_in_this_process(engine, selector):
    """In-domain and, where the method follows one, with a target; on features of one's own."""
    pool = own_features(0, 20_000 if selector.name == "gtp" and selector.subspace == 8 else 3000)
    targets = [None, own_features(1, 40)] if selector.uses_target else [None]
    for target in targets:
        here = selector.select(pool, 60, target=target, seed=3)
        there = selector.select(pool.on(engine), 60, target=target, seed=3)
        assert here.indices.tolist() == there.indices.tolist()
        assert here.weights.tobytes() == there.weights.tobytes()
        for name, column in here.columns.items():
            np.testing.assert_array_equal(column, there.columns[name])


@pytest.mark.parametrize("selector", [Tagcos(clusters=12), Gtp(subspace=8, sample=1500)], ids=lambda s: s.name)
def test_the_same_with_a_worker_killed(two, selector):
    pool = own_features(0, 6000)
    here = selector.select(pool, 60)
    spread = pool.on(all_started(two))
    (victim, _), *_ = two.processes()
    os.kill(victim, signal.SIGKILL)
    there = selector.select(spread, 60)
    assert here.indices.tolist() == there.indices.tolist()
    assert here.weights.tobytes() == there.weights.tobytes()
    assert victim not in [process for process, _ in two.processes()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder made in this process."""
    folder = tmp_path_factory.mktemp("place")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    write_rows(folder / "pool.jsonl", 120, seed=0)
    write_rows(folder / "target.jsonl", 8, seed=1, sources=["one", "two"])
    values = {**SMALL, "features": {**SMALL["features"], "shard_rows": 8}}
    run = Run(folder / "run", model=folder / "model", pool=folder / "pool.jsonl", target=folder / "target.jsonl",
              **values)  # fmt: skip
    run.target_features()
    run.extract()
    return run


def without_features(finished: Run, folder: Path) -> RunFolder:
    """A copy of the run as it was before its gradients."""
    shutil.copytree(finished.folder.path, folder)
    shutil.rmtree(folder / "features")
    for target in (folder / "targets").iterdir():
        shutil.rmtree(target / "features")
    return RunFolder(folder)


def stages_on(engine, folder: RunFolder) -> Stages:
    from pursuit.run.workers import fill_on

    settings = folder.resolve({})
    return Stages(folder, settings, fill_on(engine, folder, settings))


def shards(folder: RunFolder) -> dict[str, bytes]:
    stored = [*folder.path.rglob("features/*/*.safetensors"), *folder.path.rglob("features/manifest.json")]
    return {str(path.relative_to(folder.path)): path.read_bytes() for path in stored}


def test_extraction_gives_the_same_bits(two, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(Given, "model", property(lambda _: pytest.fail("the model was loaded here")))
    folder = without_features(finished, tmp_path / "run")
    stages = stages_on(two, folder)
    features, _ = stages.features(), stages.target_features()
    assert shards(folder) == shards(finished.folder)
    assert len(shards(folder)) == 2 * 15 + 2 * 1 + 2
    selector = Tagcos(clusters=4)
    here = selector.select(finished.extract(), 12)
    there = selector.select(features.on(two), 12)
    assert here.indices.tolist() == there.indices.tolist()
    assert here.weights.tobytes() == there.weights.tobytes()


class Killing:
    """The engine, but a worker is killed when the third result of a map comes."""

    def __init__(self, engine):
        self.engine, self.workers, self.folder, self.killed = engine, engine.workers, engine.folder, 0

    def map(self, function, items, advance=None):
        for number, result in enumerate(self.engine.map(function, items, advance)):
            if number == 2:
                (self.killed, _), *_ = self.engine.processes()
                os.kill(self.killed, signal.SIGKILL)
            yield result


def test_extraction_with_a_killed_worker_gives_the_same_bits(two, finished, tmp_path):
    folder, killing = without_features(finished, tmp_path / "run"), Killing(two)
    stages_on(killing, folder).features()
    assert killing.killed
    assert killing.killed not in [process for process, _ in two.processes()]
    assert {name: data for name, data in shards(finished.folder).items() if "targets" not in name} == shards(folder)


def test_what_is_damaged_is_told_by_the_worker_that_finds_it(two, finished, tmp_path):
    folder = without_features(finished, tmp_path / "run")
    path = folder.warmup / "checkpoint-0002" / "moments.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(StoreError, match=r"checkpoint-0002/moments\.safetensors: damaged"):
        stages_on(two, folder).features()


def extracted_both_ways(engine, finished: Run, place: Path, features: dict) -> tuple[RunFolder, RunFolder]:
    """The run with other features, in this process and by workers."""
    from pursuit.run.workers import fill_on

    values = {**finished.settings.model_dump(mode="json"), "features": features}
    here, there = RunFolder(place / "here"), RunFolder(place / "there")
    for folder in (here, there):
        shutil.copytree(finished.folder.path, folder.path, ignore=shutil.ignore_patterns("features", "settings.json"))
    Run(here.path, **values).extract()
    settings = there.resolve(values)
    Stages(there, settings, fill_on(engine, there, settings)).features()
    return here, there


def test_all_coordinates_kept(two, finished, tmp_path):
    """Without a projection only the model knows how many there are."""
    here, there = extracted_both_ways(two, finished, tmp_path, {"projection": "none", "shard_rows": 50})
    assert shards(here) == shards(there)


def test_directions_are_learnt_here_and_used_there(two, finished, tmp_path):
    features = {**finished.settings.features.model_dump(mode="json"), "directions": 0.25}
    here, there = extracted_both_ways(two, finished, tmp_path, features)
    assert shards(here) == shards(there) != shards(finished.folder)
    assert here.directions.read_bytes() == there.directions.read_bytes()


def test_what_a_cluster_cannot_give_is_said(cluster):
    with pytest.raises(RunError, match="no GPU"):
        engine_for("ray", device="cuda")
    with pytest.raises(SettingsError, match="at least 1, not 0"):
        engine_for("ray", workers=0)


def test_a_command_stops_its_workers_and_spreads_features_of_ones_own_too(cluster, tmp_path, capsys):
    np.save(tmp_path / "features.npy", np.random.default_rng(0).normal(size=(300, 12)))
    own = ["select", "--features", tmp_path / "features.npy", "--method", "gtp", "--budget", 9]
    assert run_main(*own, "--out", tmp_path / "here.jsonl", capsys=capsys)[0] == 0
    code, said = run_main(*own, "--engine", "ray", "--workers", 1, "--out", tmp_path / "there.jsonl", capsys=capsys)
    assert code == 0
    assert "Ray: 1 worker" in said
    assert (tmp_path / "here.jsonl").read_bytes() == (tmp_path / "there.jsonl").read_bytes()
    assert not any(engine.is_open() for wishes, engine in _running.items() if wishes == (None, 1, "cpu"))


def test_a_run_stops_its_workers_at_the_end_of_with_and_can_be_used_on(cluster, finished):
    with Run(finished.folder.path, engine="ray", workers=1, device="cpu") as run:
        engine = run.engine
        chosen = run.select("kcenter", 6).selection.indices
        assert engine.is_open()
    assert not engine.is_open()
    with run:
        assert run.select("kcenter", 6).selection.indices.tolist() == chosen.tolist()
