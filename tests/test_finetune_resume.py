"""Fine-tunings killed with SIGKILL at many places end with the same bytes as one that was left alone.

Run as a script, this file is the victim, as in test_trajectory_resume.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

KINDS = ("adamw_torch", "adafactor", "sgd", "infobatch", "optbatch")


def train(kind: str, folder: Path) -> None:
    """Six weighted steps with dropout, a save after each."""
    from pursuit import pace
    from pursuit.finetune import FineTune, finetune
    from pursuit.models.loading import Lora, prepare_trainable
    from test_trajectory import Rows
    from tiny import tiny_model

    pace.SAVING_SHARE = 0
    selection = None
    if kind in ("infobatch", "optbatch"):
        from pursuit.online import batch_selection

        selection = batch_selection(kind, prune=0.5)
    model = prepare_trainable(tiny_model("gpt2"), lora=Lora(rank=4, alpha=16, dropout=0.1))
    recipe = FineTune(
        epochs=3, batch_size=8, learning_rate=1e-2, micro_batch_tokens=100, recovery_seconds=0.0, weighted=True,
        optimizer="adamw_torch" if selection else kind,
    )  # fmt: skip
    weights = np.linspace(0.0, 2.0, 16)
    finetune(model, Rows(16), folder, recipe, weights=weights, batch_selection=selection)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_rename(number: int, kind: str, folder: Path) -> None:
    """Start, and be killed just before the file of this number (from 1) gets its name."""
    rename, count = os.replace, 0

    def counted(source: Any, target: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            die()
        rename(source, target)

    os.replace = counted
    train(kind, folder)


def killed_while_writing(number: int, kind: str, folder: Path) -> None:
    """Start, and be killed when half of a tensor file of this number is on the disk."""
    write, count = Path.write_bytes, 0

    def torn(path: Path, content: Any) -> int:
        nonlocal count
        count += 1
        if count == number:
            write(path, content[: len(content) // 2])
            die()
        return write(path, content)

    Path.write_bytes = torn  # type: ignore[method-assign]
    train(kind, folder)


def start(work: Callable[[], None]) -> int:
    """Run in a forked process; the signal that ended it, or minus its exit status."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def main(root: Path) -> None:
    import pursuit.finetune.run
    import pursuit.online  # noqa: F401
    import test_trajectory  # noqa: F401  (imported here, so that no fork has to)

    for kind in KINDS:
        assert start(lambda kind=kind: train(kind, root / kind / "whole")) == 0, kind
        # of 23 renames: record, log, three files for each of six steps, at the end two of the adapter and the record
        numbers = (1, 2, 4, 8, 12, 20, 21, 22, 23) if kind == "adamw_torch" else (13,)
        for number in numbers:
            folder = root / kind / f"rename-{number}"
            assert start(lambda n=number, k=kind, f=folder: killed_at_rename(n, k, f)) == signal.SIGKILL, folder
            assert start(lambda k=kind, f=folder: train(k, f)) == 0, folder
    for number in (3, 8):
        folder = root / "adamw_torch" / f"writing-{number}"
        assert start(lambda n=number, f=folder: killed_while_writing(n, "adamw_torch", f)) == signal.SIGKILL
        assert start(lambda f=folder: train("adamw_torch", f)) == 0
    folder, starts = root / "adamw_torch" / "again-and-again", 1
    while start(lambda: killed_at_rename(7, "adamw_torch", folder)) == signal.SIGKILL:  # two steps further each time
        starts += 1
    assert starts > 2


def contents(folder: Path) -> dict[str, Any]:
    """All that is left, but for how long it took and how much memory."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    lines = [json.loads(line) for line in found["log.jsonl"].splitlines()]
    for line in lines:
        line["seconds"] = 0
        line.get("batch_selection", {}).pop("seconds", None)
    found["log.jsonl"] = lines
    record = json.loads(found["finetune.json"])
    del record["checksum"]  # of the seconds too
    record["result"] |= {"seconds": 0, "peak_memory_bytes": 0}
    return {**found, "finetune.json": record}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run([sys.executable, __file__, str(root)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_fine_tuning_ends_with_the_bytes_of_one_left_alone(kind: str, runs: Path) -> None:
    whole = contents(runs / kind / "whole")
    assert sorted(whole) == ["adapter_config.json", "adapter_model.safetensors", "finetune.json", "log.jsonl"]
    killed = [folder for folder in (runs / kind).iterdir() if folder.name != "whole"]
    assert len(killed) == (12 if kind == "adamw_torch" else 1)
    for folder in killed:
        assert contents(folder) == whole, folder.name


def test_batch_selection_trains_on_fewer_rows(runs: Path) -> None:
    full, chosen = (contents(runs / kind / "whole")["finetune.json"]["result"] for kind in ("adamw_torch", "optbatch"))
    assert full["examples"] == 45  # one of 16 rows has weight 0
    assert chosen["examples"] == 3 * (4 + 4)  # half of 8 and of 7 rows, rounded


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401  (one thread)

    main(Path(sys.argv[1]))
