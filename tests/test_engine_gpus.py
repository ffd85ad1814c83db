"""How Ray workers share GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="engine ray needs one more package: pip install ray")
from pursuit.engine.ray_engine import most_threads

SHARED_GPUS = """
import ray
from engine_work import square
from pursuit.engine.ray_engine import RayEngine
ray.init(num_cpus=4, num_gpus={gpus}, include_dashboard=False, object_store_memory=100 << 20, logging_level="ERROR",
         log_to_driver=False, runtime_env={{"env_vars": {{"PYTHONPATH": {path!r}}}}})
engine = RayEngine(workers={workers})
while len(engine.processes()) < {workers}:
    assert list(engine.map(square, range(9))) == [n * n for n in range(9)]
print("left", ray.available_resources().get("GPU", 0))
"""


@pytest.mark.parametrize(
    ("machines", "workers", "sharing", "most", "found"),
    [
        ([(8, 0)], 2, 0, 8, 4),
        ([(8, 0)], 3, 0, 4, 2),
        ([(3, 0), (3, 0)], 3, 0, 2, 1),  # a worker has its threads on one machine
        ([(3, 0), (3, 0)], 2, 0, 2, 2),
        ([(64, 0), (16, 8)], 8, 1, 16, 2),  # the machine with the GPUs decides
        ([(64, 0), (16, 8)], 16, 2, 16, 1),
        ([(4, 1), (32, 1)], 2, 1, 8, 4),
        ([(1, 0)], 5, 0, 4, 1),
    ],
)
def test_threads_are_as_many_as_leave_room_for_every_worker(machines, workers, sharing, most, found):
    assert most_threads(machines, workers, sharing, most) == found


@pytest.mark.parametrize(("gpus", "workers", "left"), [(1, 3, 1e-4), (2, 3, 0.5)])
def test_more_workers_than_gpus_share_them(gpus, workers, left):
    """Of a Ray that believes in GPUs; each worker needs a part of one to start."""
    here = str(Path(__file__).parent)
    code = SHARED_GPUS.format(gpus=gpus, workers=workers, path=here)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"with 1 thread and 1/{-(-workers // gpus)} of a GPU each" in done.stderr + done.stdout
    assert float(done.stdout.split("left ")[1]) == pytest.approx(left)
