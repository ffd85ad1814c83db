"""`pursuit finetune`: from a run, a subset or a pool to a trained model; and what it says when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import pursuit.cli.finetune  # noqa: F401  (its command joins the app)
from pursuit import Run
from pursuit.cli import main
from pursuit.errors import SettingsError
from pursuit.finetune import FineTune, Finetuned, finetune
from pursuit.finetune.command import Source, run_finetune
from pursuit.models.loading import load_model, prepare_trainable
from pursuit.selectors import Selection
from report_pages import embedded
from test_run import write_rows
from tiny import tiny_model, tiny_tokenizer

QUICK = ("--batch-size", 4, "--learning-rate", 1e-2, "--epochs", 2)
RECIPE = FineTune(batch_size=4, learning_rate=1e-2, epochs=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a pool, a run with two selections, and a subset beside its table."""
    folder = tmp_path_factory.mktemp("place")
    for name, kind in (("model", "llama"), ("other", "qwen2")):
        tiny_model(kind).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    write_rows(folder / "pool.jsonl", 24, seed=0)
    run = Run(folder / "run", model=folder / "model", pool=folder / "pool.jsonl", lora={"rank": 4, "alpha": 8})
    chosen = run.select("longest", 10, out=folder / "subset.jsonl").selection
    weights = np.linspace(0, 3, 10)
    weighted = Selection(chosen.indices, weights, method="tagcos", num_rows=24)
    weighted.save(folder / "run" / "selections" / "tagcos-10-abcd")
    table = pq.read_table(folder / "subset.chosen.parquet")
    column = table.column_names.index("weight")
    pq.write_table(table.set_column(column, "weight", pa.array(weights)), folder / "subset.chosen.parquet")
    return folder


def command(*arguments: Any, status: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", *map(str, arguments)])
    assert stopped.value.code == status


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """What the command says on standard error when it refuses."""
    command(*arguments, status=2)
    return " ".join(capsys.readouterr().err.split())


def adapter(folder: Path) -> bytes:
    return (folder / "adapter_model.safetensors").read_bytes()


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "finetune.json").read_text())["made_from"]


def test_a_subset_is_trained_on_as_its_run_reads_rows(place: Path, tmp_path: Path, capsys: Any) -> None:
    command("--run", place / "run", "--subset", place / "subset.jsonl", "--out", tmp_path / "a", *QUICK)
    shown = capsys.readouterr().out
    assert "10 rows, 6 steps (2.0 epochs)" in shown
    assert "adapter for" in shown
    done = Finetuned.load(tmp_path / "a")
    assert (done.rows, done.steps, done.adapter) == (10, 6, True)
    assert record(tmp_path / "a")["trains"]["rank"] == 4  # the run's
    described = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(place / "model")
    tuned = prepare_trainable(load_model(place / "model", device="cpu"), adapter=tmp_path / "a")
    ids = torch.arange(5, 30)[None]
    assert not torch.equal(tuned(input_ids=ids).logits, tiny_model("llama")(input_ids=ids).logits)


def test_a_selection_of_the_run_and_its_subset_give_the_same_bits(place: Path, tmp_path: Path) -> None:
    """The order of the rows differs: in the file that of choice, in the run that of the pool. The weights go along."""
    command("--run", place / "run", "--selection", "tagcos", "--weighted", "--out", tmp_path / "a", *QUICK)
    run, selection = Run(place / "run"), Selection.load(place / "run" / "selections" / "tagcos-10-abcd")
    model = prepare_trainable(load_model(place / "model", device="cpu"), lora=run.settings.lora_recipe())
    weighted = FineTune(batch_size=4, learning_rate=1e-2, epochs=2, weighted=True)
    done = finetune(model, run.encode(), tmp_path / "python", weighted, selection=selection)
    assert done.rows == 9  # one has weight 0
    assert adapter(tmp_path / "a") == adapter(tmp_path / "python")
    command("--run", place / "run", "--selection", "tagcos", "--out", tmp_path / "b", *QUICK)
    assert adapter(tmp_path / "a") != adapter(tmp_path / "b")


def test_weights_of_a_subset_come_from_the_table_beside_it(place: Path, tmp_path: Path) -> None:
    subset = ("--run", place / "run", "--subset", place / "subset.jsonl", "--batch-size", 16, "--epochs", 1)
    command(*subset, "--weighted", "--out", tmp_path / "a")
    command("--run", place / "run", "--selection", "tagcos", "--weighted", "--batch-size", 16, "--epochs", 1,
            "--out", tmp_path / "b")  # fmt: skip
    first, second = Finetuned.load(tmp_path / "a"), Finetuned.load(tmp_path / "b")
    assert first.rows == second.rows == 9
    assert first.losses == pytest.approx(second.losses)  # one batch of all rows: their order does not matter
    command(*subset, "--out", tmp_path / "c")
    assert Finetuned.load(tmp_path / "c").losses != pytest.approx(first.losses)


def test_a_pool_without_a_run(place: Path, tmp_path: Path) -> None:
    command("--model", place / "model", "--pool", place / "pool.jsonl", "--out", tmp_path, *QUICK, "--steps", 3,
            "--lora.rank", 2, "--optimizer", "adafactor", "--schedule", "constant", "--seed", 5)  # fmt: skip
    done = Finetuned.load(tmp_path)
    assert (done.rows, done.steps) == (24, 3)
    assert record(tmp_path)["seed"] == 5
    assert record(tmp_path)["optimizer"] == "adafactor"
    assert record(tmp_path)["trains"]["rank"] == 2


def test_all_weights_are_trained_and_the_folder_is_a_model(place: Path, tmp_path: Path) -> None:
    command("--run", place / "run", "--subset", place / "subset.jsonl", "--out", tmp_path, "--full", *QUICK)
    tuned, base = load_model(tmp_path, device="cpu"), tiny_model("llama")
    assert all(not torch.equal(p, q) for p, q in zip(tuned.parameters(), base.parameters(), strict=True) if p.dim() > 1)


def test_an_adapter_is_trained_further(place: Path, tmp_path: Path) -> None:
    subset = ("--run", place / "run", "--subset", place / "subset.jsonl", *QUICK)
    command(*subset, "--out", tmp_path / "a")
    command(*subset, "--out", tmp_path / "b", "--adapter", tmp_path / "a")
    first, second = Finetuned.load(tmp_path / "a"), Finetuned.load(tmp_path / "b")
    assert second.trained_parameters == first.trained_parameters
    assert second.losses[0] < first.losses[0]


def test_another_model_is_trained_on_the_same_subset(place: Path, tmp_path: Path) -> None:
    command("--run", place / "run", "--subset", place / "subset.jsonl", "--out", tmp_path, *QUICK,
            "--model", place / "other", "--lora.rank", 2)  # fmt: skip
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(place / "other")


def test_batches_are_chosen_from(place: Path, tmp_path: Path) -> None:
    command("--model", place / "model", "--pool", place / "pool.jsonl", "--out", tmp_path, "--lora.rank", 2,
            *QUICK, "--online", "optbatch", "--prune", 0.5, "--param", "strata=2")  # fmt: skip
    assert Finetuned.load(tmp_path).examples == 24  # half of two epochs
    assert record(tmp_path)["batch_selection"]["strata"] == 2
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    drawn = embedded((tmp_path / "batch_selection.html").read_text(), "figures")
    assert drawn["losses"]["data"][1]["y"] == pytest.approx(
        [line["batch_selection"]["kept_loss"] for line in log], rel=1e-3
    )
    assert {"strata", "spread", "seconds", "flops"} < set(drawn)


def test_a_finished_one_does_not_load_the_model_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--run", place / "run", "--subset", place / "subset.jsonl", "--out", tmp_path, *QUICK)
    command(*arguments)
    before = adapter(tmp_path)
    monkeypatch.setattr("pursuit.finetune.command.load_configured", lambda *_, **__: pytest.fail("loaded again"))
    command(*arguments)
    assert adapter(tmp_path) == before


def test_other_settings_in_the_same_folder_are_refused(place: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ("--run", place / "run", "--subset", place / "subset.jsonl", "--out", tmp_path, *QUICK)
    command(*arguments)
    assert "begun with seed = 0, not 3" in fails(capsys, *arguments, "--seed", 3)


# --- what goes wrong is said


def test_rows_must_be_named_once(place: Path, tmp_path: Path, capsys: Any) -> None:
    run, out = ("--run", place / "run"), ("--out", tmp_path / "a")
    assert "no rows: name what to train on by one of --subset" in fails(capsys, *run, *out)
    both = fails(capsys, *run, *out, "--subset", place / "subset.jsonl", "--pool", place / "pool.jsonl")
    assert "--subset and --pool: name what to train on by one of" in both
    assert "name its folder with --run" in fails(capsys, *out, "--selection", "tagcos", "--model", place / "model")
    assert "name a model with --model" in fails(capsys, *out, "--pool", place / "pool.jsonl")
    assert "there is no run in this folder" in fails(
        capsys, *out, "--run", tmp_path / "none", "--subset", place / "subset.jsonl"
    )
    assert "there is no selection 'gtp'. Here are: longest-10-" in fails(capsys, *run, *out, "--selection", "gtp")
    assert not (tmp_path / "a" / "finetune.json").exists()


def test_weights_that_are_not_there_are_asked_for(place: Path, tmp_path: Path, capsys: Any) -> None:
    lone = tmp_path / "lone.jsonl"
    lone.write_bytes((place / "subset.jsonl").read_bytes())
    run = ("--run", place / "run", "--out", tmp_path / "a", "--weighted", "--subset", lone)
    missing = fails(capsys, *run)
    assert "lone.chosen.parquet: is missing" in missing
    assert "train without --weighted" in missing
    pq.write_table(pq.read_table(place / "subset.chosen.parquet").slice(0, 4), tmp_path / "lone.chosen.parquet")
    assert "has 4 rows, but" in fails(capsys, *run)
    pool = ("--model", place / "model", "--pool", place / "pool.jsonl", "--out", tmp_path / "b", "--weighted")
    assert "weights come with --subset or --selection" in fails(capsys, *pool)


def test_a_row_that_cannot_be_used_is_named_or_skipped(place: Path, tmp_path: Path, capsys: Any) -> None:
    """Skipped rows take their weights with them."""
    lines = (place / "subset.jsonl").read_bytes().splitlines()
    subset = tmp_path / "broken.jsonl"
    subset.write_bytes(b"\n".join([*lines[:3], b'{"prompt": "no response"}', *lines[4:]]) + b"\n")
    table = pq.read_table(place / "subset.chosen.parquet").replace_schema_metadata(None)  # made by hand
    pq.write_table(table, tmp_path / "broken.chosen.parquet")
    arguments = ("--run", place / "run", "--subset", subset, "--weighted", *QUICK)
    assert "broken.jsonl, line 4" in fails(capsys, *arguments, "--out", tmp_path / "a")
    command(*arguments, "--out", tmp_path / "b", "--on-bad-row", "skip")
    assert Finetuned.load(tmp_path / "b").rows == 8


def test_flags_that_do_not_go_together_are_refused(place: Path, tmp_path: Path, capsys: Any) -> None:
    run = ("--run", place / "run", "--out", tmp_path, "--subset", place / "subset.jsonl")
    assert "full, lora: give one of them" in fails(capsys, *run, "--full", "--lora.rank", 2)
    assert "weights, lora: give one of them" in fails(capsys, *run, "--weights", "*mlp*", "--lora.rank", 2)
    assert "features: not used by finetune" in fails(capsys, *run, "--features.dimension", 64)
    assert "prune: only used with --online" in fails(capsys, *run, "--prune", 0.3)
    assert "there is no batch selection 'optbach'" in fails(capsys, *run, "--online", "optbach")
    assert "optimizer 'adam' is not known" in fails(capsys, *run, "--optimizer", "adam")
    assert "fine-tuning batch_size = 0: must be at least 1" in fails(capsys, *run, "--batch-size", 0)
    selection = ("--run", place / "run", "--out", tmp_path, "--selection", "tagcos", "--max-length", 99)
    assert "max_length: --selection takes the run's own tokens" in fails(capsys, *selection)


def test_the_same_checks_in_python(place: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="target: not used by finetune"):
        run_finetune(Source(run=place / "run", subset=place / "subset.jsonl"), tmp_path, RECIPE, {"target": ["x"]})


def test_help_teaches_and_does_not_wait_for_torch() -> None:
    code = (
        "import sys, pursuit.cli.finetune\nfrom pursuit.cli import main\n"
        "try: main(['finetune', '--help'])\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pursuit finetune --run runs/x --subset subset.jsonl --out models/a" in done.stdout
