"""Warm-ups killed with SIGKILL at many places end with the same bytes as one that was left alone.

Run as a script, this file is the victim: it imports everything once and forks a process for each start, because a
forked start is ten times faster than a new interpreter. Nothing is trained before the forks.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# of 16 renames: warmup.json, then three files for each of five steps; checkpoints are at 2 and 5, the rest recovery
RENAMES = (1, 2, 4, 6, 8, 11, 15)


def train(folder: Path) -> None:
    """Five steps with dropout, a save after each; checkpoints are kept at 2 and 5."""
    from pursuit import pace
    from pursuit.models.loading import Lora, prepare_trainable
    from pursuit.warmup import WarmUp, warm_up
    from test_trajectory import Rows
    from tiny import tiny_model

    pace.SAVING_SHARE = 0
    model = prepare_trainable(tiny_model("gpt2"), lora=Lora(rank=4, alpha=16, dropout=0.1))
    settings = WarmUp(
        checkpoint_steps=(2, 5), batch_size=8, sample=20, epochs=2, learning_rate=1e-2, micro_batch_tokens=100,
        recovery_seconds=0.0,
    )  # fmt: skip
    warm_up(model, Rows(30), folder, settings)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_rename(number: int, folder: Path) -> None:
    """Start, and be killed just before the file of this number (from 1) gets its name."""
    rename, count = os.replace, 0

    def counted(source: str, target: str) -> None:
        nonlocal count
        count += 1
        if count == number:
            die()
        rename(source, target)

    os.replace = counted  # type: ignore[assignment]
    train(folder)


def killed_while_writing(number: int, folder: Path) -> None:
    """Start, and be killed when half of a tensor file of this number is on the disk."""
    write, count = Path.write_bytes, 0

    def torn(path: Path, content: bytes) -> int:
        nonlocal count
        count += 1
        if count == number:
            write(path, content[: len(content) // 2])
            die()
        return write(path, content)

    Path.write_bytes = torn  # type: ignore[method-assign]
    train(folder)


def killed_while_removing(number: int, folder: Path) -> None:
    """Start, and be killed when a recovery checkpoint is half removed."""
    import shutil

    remove, count = shutil.rmtree, 0

    def torn(path: Path) -> None:
        nonlocal count
        count += 1
        if count == number:
            (path / "weights.safetensors").unlink()
            die()
        remove(path)

    shutil.rmtree = torn  # type: ignore[assignment]
    train(folder)


def start(work: Callable[[], None]) -> int:
    """Run in a forked process; the signal that ended it, or minus its exit status."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return _ended(os.waitpid(child, 0)[1])


def _ended(status: int) -> int:
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def start_and_kill_after(seconds: float, folder: Path) -> None:
    child = os.fork()
    if child == 0:
        train(folder)
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main(root: Path) -> None:
    import pursuit.warmup  # noqa: F401
    import test_trajectory  # noqa: F401  (imported here, so that no fork has to)

    begun = time.monotonic()
    assert start(lambda: train(root / "whole")) == 0
    took = time.monotonic() - begun
    kills: dict[str, Callable[[Path], None]] = {}
    for number in RENAMES:
        kills[f"rename-{number}"] = lambda folder, n=number: killed_at_rename(n, folder)
    for number in (3, 9):
        kills[f"writing-{number}"] = lambda folder, n=number: killed_while_writing(n, folder)
    for number in (1,):
        kills[f"removing-{number}"] = lambda folder, n=number: killed_while_removing(n, folder)
    for name, kill in kills.items():
        folder = root / name
        assert start(lambda kill=kill, folder=folder: kill(folder)) == signal.SIGKILL, name
        assert start(lambda folder=folder: train(folder)) == 0, name
    starts = 1  # one run that gets only four files further at each start
    while start(lambda: killed_at_rename(5, root / "again-and-again")) == signal.SIGKILL:
        starts += 1
    assert starts > 3
    chance = random.Random(0)
    for number in range(2):  # and whenever the clock says so
        start_and_kill_after(chance.random() * took, root / f"clock-{number}")
        assert start(lambda n=number: train(root / f"clock-{n}")) == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, __file__, str(root)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return root


def test_a_killed_warm_up_ends_with_the_bytes_of_one_left_alone(runs: Path) -> None:
    whole = contents(runs / "whole")
    assert len(whole) == 7  # the manifest and two checkpoints: no recovery checkpoint, no half-written file is left
    killed = [folder for folder in runs.iterdir() if folder.name != "whole"]
    assert len(killed) == len(RENAMES) + 2 + 1 + 1 + 2
    for folder in killed:
        assert contents(folder) == whole, folder.name


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401  (one thread)

    main(Path(sys.argv[1]))
