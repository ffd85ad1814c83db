"""How Ray workers share GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason='engine ray needs one more package: pip install "pursuit[ray]"')

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
