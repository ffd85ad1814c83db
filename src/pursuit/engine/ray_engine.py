"""Work on the workers of a Ray cluster, or of a Ray that is started on this machine.

Every worker is a process with the same number of threads, because the order in which numbers are summed depends on it.
Files of the run folder are opened by the workers themselves: all machines must see them under the same path. Arrays of
one's own are copied once to every machine.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import socket
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray

from pursuit.engine.ray_pool import Pool
from pursuit.engine.ray_worker import MappedFile, There, on_blocks
from pursuit.errors import RunError, SettingsError
from pursuit.progress import Advance, say
from pursuit.solvers.rows import RowMatrix

Item = TypeVar("Item")
Result = TypeVar("Result")

STRIPE_ROWS = 16_384  # rows that a worker is given at once, at most
AHEAD = 4  # stripes for each worker that may be done before their turn


class RayEngine:
    """Workers of a Ray cluster; see `pursuit.engine.Engine`.

    Args:
        address: of a running cluster, "auto" for the one of this machine; without, one is started here.
        workers: how many; more than there are GPUs share them [ours]: small models leave most of one idle. Without, one
            for each GPU; where there is none, as many as fit with the threads of this process (OMP_NUM_THREADS).
        device: "cpu" takes no GPU.
        folder: see `pursuit.engine.engine_for`.

    Attributes:
        threads: of each worker: those of this process, or fewer where `workers` are many.

    Raises:
        RunError: no cluster at the address, or none with what is asked for.
        SettingsError: a number of workers below 1.
    """

    def __init__(
        self, address: str | None = None, *, workers: int | None = None, device: str = "auto",
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        if workers is not None and workers < 1:
            raise SettingsError(f"workers must be at least 1, not {workers}.")
        self.folder = folder
        self._started = _connect(address)
        machines = [(int(has.get("CPU", 0)), int(has.get("GPU", 0)) * (device != "cpu")) for has in _machines()]
        gpus = sum(machine[1] for machine in machines)
        if device.startswith("cuda") and not gpus:
            raise RunError(f"device {device!r}: this Ray cluster has no GPU. Leave it out, or say cpu.")
        here = _threads()
        self.workers = workers or gpus or max(1, sum(processors // here for processors, _ in machines))
        sharing = -(-self.workers // gpus) if gpus else 0  # workers a GPU
        self.threads = most_threads(machines, self.workers, sharing, here)
        environment = {"env_vars": _variables(self.threads)}
        part = math.floor(1e4 / sharing) / 1e4 if sharing else 0  # Ray counts ten-thousandths
        options = {"num_cpus": self.threads, "num_gpus": part, "runtime_env": environment}
        self._pool = Pool(self.workers, options)
        each = f"{self.threads} thread{'s' * (self.threads > 1)}"
        each += f" and {'a' if sharing == 1 else f'1/{sharing} of a'} GPU" if gpus else ""
        say(f"Ray: {self.workers} worker{'s' * (self.workers > 1)} with {each} each")
        if self.threads != here:
            say(f"this process has {here} threads: with OMP_NUM_THREADS={self.threads} it rounds as the workers do")

    def map(
        self, function: Callable[..., Result], items: Iterable[Item], advance: Advance | None = None
    ) -> Iterator[Result]:
        """function(item) of every item, each by the next worker that is free; given in the order of the items."""
        yield from self._pool.run(function, list(items), advance=advance)

    def spread(self, matrix: RowMatrix) -> RowMatrix:
        """The same matrix, whose passes run on the workers."""
        return matrix if isinstance(matrix, SpreadMatrix) else SpreadMatrix(self, self._pool, matrix)

    def processes(self) -> list[tuple[int, str]]:
        """Process id and machine of every worker that has started."""
        return [(member.process, member.machine) for member in self._pool.members.values()]

    def is_open(self) -> bool:
        """Whether it still has workers."""
        return ray.is_initialized() and not self._pool.closed

    def close(self) -> None:
        """Stop the workers, and Ray where it was started for them."""
        if self.is_open():
            self._pool.close()
            if self._started:
                ray.shutdown()

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_running: dict[tuple[str | None, int | None, str], RayEngine] = {}


def ray_engine(address: str | None, workers: int | None, device: str, folder: Path | None) -> RayEngine:
    """A RayEngine; asked for again with the same wishes, one with the same workers, until it is closed.

    Otherwise a second run in the same process would wait for the processors that the workers of the first hold.
    """
    wishes = (address, workers, device)
    engine = _running.get(wishes)
    if engine is None or not engine.is_open():
        engine = _running[wishes] = RayEngine(address, workers=workers, device=device)
    there = copy.copy(engine)
    there.folder = folder
    return there


class SpreadMatrix:
    """A RowMatrix that is read here row by row, and in whole passes by the workers.

    In a pass the rows are cut into stripes of whole blocks, and every worker takes the same stripes again in the next
    pass unless another is faster: its machine then has them in memory.
    """

    def __init__(self, engine: RayEngine, pool: Pool, matrix: RowMatrix) -> None:
        self.shape: tuple[int, ...] = tuple(matrix.shape)
        self._engine, self._pool, self._matrix = engine, pool, matrix
        if isinstance(matrix, np.memmap):
            matrix.flush()
            matrix = MappedFile(matrix)
        self._reference = ray.put(matrix)
        if isinstance(matrix, np.ndarray):
            self._matrix = ray.get(self._reference)  # shares its memory with the workers here; the original may go
        weakref.finalize(self, pool.stale.append, self._reference.hex()).atexit = False

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        return self._matrix[rows]

    def __reduce__(self) -> tuple[Any, ...]:
        return There, (self._reference, self.shape)

    def map_blocks(
        self, function: Callable[[np.ndarray, int], Result], block_rows: int
    ) -> Iterator[tuple[int, int, Result]]:
        """As `pursuit.solvers.rows.map_blocks`."""
        count, workers = self.shape[0], self._engine.workers
        blocks = -(-count // block_rows)
        step = block_rows * max(1, min(STRIPE_ROWS // block_rows, blocks // (AHEAD * workers)))
        stripes = [(start, min(count, start + step)) for start in range(0, count, step)]
        on_stripe = partial(on_blocks, self, function, block_rows)
        found: Iterable[list[Result]]
        if len(stripes) < 2:
            found = (on_stripe(stripe) for stripe in stripes)
        else:
            found = self._pool.run(on_stripe, stripes, depth=2, ahead=AHEAD * workers)
        for (start, stop), parts in zip(stripes, found, strict=True):
            for number, part in enumerate(parts):
                first = start + number * block_rows
                yield first, min(stop, first + block_rows), part


def _connect(address: str | None) -> bool:
    """Join a cluster, or start one here: then True."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None:
        options["include_dashboard"] = False
    try:
        _knock(address)
        ray.init(address=address or "local", **options)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"at {address!r}" if address else "on this machine"
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RunError(
            f"no Ray cluster {where}: {reason.rstrip('.')}. Start one with `ray start --head` and name it with "
            "--ray-address, or leave the address out: Ray is then started on this machine."
        ) from error
    return address is None


def _knock(address: str | None) -> None:
    """An OSError where nothing listens at host:port; Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _machines() -> list[dict[str, float]]:
    """What each living machine of the cluster has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def most_threads(machines: Sequence[tuple[int, int]], workers: int, sharing: int, most: int) -> int:
    """The largest number of threads, up to `most`, of which so many workers find room.

    Args:
        machines: (processors, GPUs) of each.
        sharing: workers a GPU; 0 where they take none.
    """
    for threads in range(most, 1, -1):
        room = (min(has // threads, gpus * sharing) if sharing else has // threads for has, gpus in machines)
        if sum(room) >= workers:
            return threads
    return 1


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _variables(threads: int) -> dict[str, str]:
    """The environment of a worker."""
    return {
        "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
