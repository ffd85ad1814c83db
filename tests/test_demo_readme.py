"""Every command and program of the README runs as it stands, on a tiny model in the place of MODEL."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pursuit.cli import main
from tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parent.parent


def code_blocks(path: Path) -> list[str]:
    """The indented blocks of a Markdown file."""
    found = re.findall(r"(?:^(?:    .*)?\n)+", path.read_text(), re.M)
    return [re.sub("^    ", "", block, flags=re.M) for block in found]


BLOCKS = code_blocks(ROOT / "README.md")
COMMANDS = [
    line.removeprefix("$ ")
    for block in BLOCKS
    for line in block.splitlines()
    if re.match(r"(\$ )?pursuit ", line) and "--ray-address" not in line  # Ray: tests/test_engine_ray.py
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the README names."""
    folder = tmp_path_factory.mktemp("readme")
    tiny_model("llama").save_pretrained(folder / "MODEL")
    tiny_tokenizer().save_pretrained(folder / "MODEL")
    generator = random.Random(0)
    rows = [
        {"prompt": " ".join(generator.choices(["sea", "wind", "apple", "rome"], k=3)), "completion": f"answer {i}"}
        for i in range(240)
    ]
    for name, part in (
        ("a.jsonl", rows[:180]), ("exam.jsonl", rows[220:]), ("quiz.jsonl", rows[225:]), ("heldout.jsonl", rows[230:]),
        ("more.jsonl", rows[220:225]),
    ):  # fmt: skip
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    pq.write_table(pa.Table.from_pylist(rows[180:220]), folder / "b.parquet")
    numbers = np.random.default_rng(0)
    np.save(folder / "feats.npy", numbers.normal(size=(1200, 16)))
    np.save(folder / "t.npy", numbers.normal(size=(10, 16)))
    (folder / "x.yaml").write_text(next(block for block in BLOCKS if "# x.yaml" in block))
    return folder


def test_the_commands_run_and_leave_the_files_they_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        arguments = shlex.split(command, comments=True)[1:]
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0, command
        if "--out" in arguments and arguments[0] in ("select", "run"):
            out = Path(arguments[arguments.index("--out") + 1])
            beside = [out.with_name(out.stem + ending) for ending in (".chosen.parquet", ".report.html")]
            assert all(path.stat().st_size for path in (out, *beside)), command
    names: dict[str, object] = {}  # and docs/runs.md reads the run folder that they made
    exec(next(block for block in code_blocks(ROOT / "docs" / "runs.md") if "load_file" in block), names)
    assert names["shard"]["features"].shape == (220, 8192)  # type: ignore[index]


def test_the_python_programs_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    program = next(block for block in BLOCKS if "import Run" in block)
    names: dict[str, object] = {}
    exec(program.replace("runs/x", "runs/python"), names)
    assert len(names["result"].selection) == 11  # type: ignore[attr-defined]  # 5% of 220 rows
    atoms = np.random.default_rng(0).normal(size=(300, 16))
    batch = tiny_tokenizer()(["the sea", "the wind"], return_tensors="pt", padding=True)
    model = tiny_model("llama").requires_grad_(False)
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    given = {
        "atoms": atoms, "target": atoms.mean(axis=0), "model": model,
        "batch": {**{k: batch[k] for k in ("input_ids", "attention_mask")}, "labels": batch["input_ids"]},
    }  # fmt: skip
    exec(next(block for block in BLOCKS if "import matching_pursuit" in block), given)
