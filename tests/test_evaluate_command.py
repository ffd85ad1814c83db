"""`pursuit evaluate`, what it keeps on disk, and lm-eval's tasks on a loaded model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

import pursuit.cli.evaluate  # noqa: F401  (the command joins the app)
from pursuit.cli import main
from pursuit.errors import SettingsError, StoreError
from pursuit.evaluate import Evaluation, Respond, evaluate
from pursuit.evaluate.harness import run_lm_eval
from pursuit.evaluate.parts import weights_digest
from pursuit.models.loading import load_model
from pursuit.settings import settings_from
from tiny import tiny_model, tiny_tokenizer

FIGURES = {"one": "1", "two": "2", "three": "3", "four": "4"}


def rows(*, options: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "messages": [{"role": "user", "content": word}, {"role": "assistant", "content": figure}],
            "source": "odd" if int(figure) % 2 else "even",
            **({"options": list(FIGURES.values()), "answer": place} if options else {}),
        }
        for place, (word, figure) in enumerate(FIGURES.items())
    ]


def write(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tiny_model("llama"), tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "heldout.jsonl", rows())


def run(*arguments: Any) -> int:
    """The command's exit status."""
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_the_command_shows_all_rows_first_and_leaves_scores_and_rows(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    assert run("--model", model, "--eval", data, "--metrics", "loss,exact,choice", "--out", out) == 0
    shown = capsys.readouterr().out
    lines = [line.split("  ")[0] for line in shown.splitlines() if not line.startswith(" ")]
    exact = Evaluation.load(out).overall["exact"]
    assert f"[{exact.low:.3f}, {exact.high:.3f}]" in shown, "a share's interval is not symmetric"
    assert lines[lines.index("all rows") :][:4] == ["all rows", "mean of families", "even", "odd"]
    found = Evaluation.load(out)
    direct = evaluate(tiny_model("llama"), tiny_tokenizer(), data, metrics=["loss", "exact", "choice"])
    assert found.overall == direct.overall
    assert found.families == direct.families
    assert found.examples.drop_columns(["path"]).equals(direct.examples.drop_columns(["path"]))
    assert set(found.examples.column_names) == {
        "index", "source", "path", "line", "loss", "choice", "choice_normalised", "chosen", "prediction", "reference",
        "exact",
    }  # fmt: skip


def test_an_adapter_a_whole_model_in_its_place_and_a_run_are_taken_up(model: Path, data: Path, tmp_path: Path) -> None:
    def loss(name: str, *arguments: Any) -> float:
        assert run("--eval", data, "--metrics", "loss", "--out", tmp_path / name, *arguments) == 0
        return Evaluation.load(tmp_path / name).overall["loss"].mean

    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    other = save(tiny_model("llama", seed=5), tmp_path / "other")
    settings = {"model": str(model), "pool": [str(data)], "chat_template": "plain"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text(settings_from(settings).model_dump_json())
    base = loss("base", "--model", model)
    assert loss("adapted", "--model", model, "--adapter", tmp_path / "adapter") == pytest.approx(
        evaluate(adapted, tiny_tokenizer(), data, metrics=["loss"]).overall["loss"].mean
    )
    assert loss("whole", "--model", model, "--adapter", other) == loss("other", "--model", other) != base
    plain = loss("run", "--run", tmp_path / "run")
    assert plain == loss("plain", "--model", model, "--chat-template", "plain") != base
    assert loss("over", "--run", tmp_path / "run", "--chat-template", "chatml") != plain


def refusals(model: Path, tmp_path: Path) -> list[tuple[list[Any], str]]:
    data = write(tmp_path / "rows.jsonl", rows(options=False))
    return [
        (["--model", model, "--eval", data, "--metrics", "bleu"], "'bleu' is not known"),
        (["--model", model, "--eval", data, "--metrics", "choice"], "none of the 4 rows has options"),
        (["--model", model, "--eval", write(tmp_path / "empty.jsonl", [])], "holds no rows"),
        (["--model", model, "--eval", tmp_path / "none.jsonl"], "none.jsonl"),
        (["--model", model], "nothing to score on"),
        (["--eval", data], "name what to evaluate"),
        (["--run", tmp_path / "nowhere", "--eval", data], "there is no run in this folder"),
        (["--model", model, "--eval", data, "--budget", "3"], "budget"),
        (["--model", model, "--eval", data, "--pool", data], "pool: not used by evaluate"),
        (["--model", model, "--eval", data, "--scorer", "json"], "package.module:function"),
        (["--model", model, "--eval", data, "--max-new-tokens", "0"], "at least 1"),
        (["--model", model, "--eval", data, "--scorer", "json:dumps", "json:dumps"], "two called 'dumps'"),
    ]


def test_what_cannot_be_done_ends_with_a_reason_before_weights_are_read(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "model.safetensors").unlink()
    for arguments, reason in refusals(model, tmp_path):
        assert run(*arguments) == 2
        assert reason in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys, pursuit.cli.evaluate; from pursuit.cli import main\n"
        "try: main(['evaluate', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--lm-eval" in done.stdout


def play_figures(respond: Respond, given: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(len(reply)) for reply in respond([line["messages"][:1] for line in given])]


def count_letters(prompt: list[dict[str, str]], response: str, row: Mapping[str, Any]) -> float:
    return float(len(prompt[-1]["content"]))


def test_functions_of_ones_own_are_named_on_the_command_line(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(__file__, tmp_path / "my_scores.py")
    run("--model", model, "--eval", data, "--metrics", "loss", "--out", "scores", "--scorer",
        "my_scores:count_letters", "--player", "length=my_scores:play_figures")  # fmt: skip
    found = Evaluation.load(tmp_path / "scores")
    assert found.examples["count_letters"].to_pylist() == [3, 3, 5, 4]
    assert min(found.examples["length"].to_pylist()) > 0


def finished(data: Path, out: Path, model: PreTrainedModel, **more: Any) -> dict[str, Any]:
    asked = {"metrics": ["loss", "exact", "choice"], "players": {"p": play_figures}, **more}
    found = evaluate(model, tiny_tokenizer(), data, out=out, **asked)
    return {name: found.overall[name].mean for name in ("loss", "choice", "p") if name in found.overall}


def spoil(path: Path, column: str, value: float) -> None:
    """Put another number into a finished part, so that it shows whether it was read or computed again."""
    table = pq.read_table(path)
    changed = table.set_column(table.column_names.index(column), column, pa.array([value] * len(table)))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)


def test_finished_parts_are_used_again_for_the_same_model_rows_and_settings_only(data: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "scores", tiny_model("llama")
    first = finished(data, out, model)
    spoil(out / "parts" / "loss.parquet", "loss", 7.0)
    spoil(out / "parts" / "choice.parquet", "choice", 0.5)
    spoil(out / "parts" / "player-p.parquet", "p", 9.0)
    kept = finished(data, out, model)
    assert kept == {"loss": 7.0, "choice": 0.5, "p": 9.0}
    assert finished(data, out, model, metrics=["loss"])["loss"] == 7.0  # another set of metrics
    (out / "parts" / "choice.parquet").write_bytes(b"cut off")
    assert finished(data, out, model) == {**kept, "choice": first["choice"]}
    assert finished(data, out, tiny_model("llama", seed=1)) not in (first, kept)  # other weights
    assert finished(data, out, model) == first  # the other model's parts stand there now
    spoil(out / "parts" / "loss.parquet", "loss", 7.0)
    lines = rows()
    lines[0]["source"] = "other"
    assert finished(write(data, lines), out, model) == first  # other rows


def test_an_evaluation_is_read_as_it_was_written_and_a_damaged_one_is_named(data: Path, tmp_path: Path) -> None:
    found = evaluate(tiny_model("gpt2"), tiny_tokenizer(), data, out=tmp_path / "scores")
    read = Evaluation.load(tmp_path / "scores")
    assert read.to_json() == found.to_json()
    assert read.examples.equals(found.examples)
    (tmp_path / "scores" / "examples.parquet").unlink()
    with pytest.raises(StoreError, match="holds no whole evaluation"):
        Evaluation.load(tmp_path / "scores")


def test_the_digest_of_weights_tells_functions_apart_and_nothing_else(tmp_path: Path) -> None:
    digest = weights_digest(tiny_model("llama"))
    assert digest == weights_digest(tiny_model("llama").train())
    saved = save(tiny_model("llama"), tmp_path / "saved")
    assert digest == weights_digest(load_model(saved))
    assert digest != weights_digest(tiny_model("llama", seed=1))
    assert digest != weights_digest(tiny_model("llama").to(torch.bfloat16))
    adapters = [
        get_peft_model(tiny_model("llama"), LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj", "v_proj"]))
        for alpha in (2, 2, 4)
    ]
    for adapted in adapters:
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.fill_(0.1)
    same, again, doubled = map(weights_digest, adapters)
    assert same == again != doubled


def local_task(folder: Path) -> Path:
    """A task of lm-eval on a JSON file: no hub is asked."""
    folder.mkdir()
    lines = [{"q": word, "choices": list(FIGURES.values()), "gold": place} for place, word in enumerate(FIGURES)]
    write(folder / "figures.json", lines)
    task = folder / "figures.yaml"
    task.write_text(
        f"task: local_figures\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/figures.json\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_choice: choices\n"
        "doc_to_target: gold\nmetric_list:\n  - metric: acc\n"
    )
    return task


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def likeliest(model: PreTrainedModel, word: str) -> int:
    """What lm-eval's multiple choice asks: which figure, after a space, follows the word."""
    tokenizer = tiny_tokenizer()
    scores = []
    for figure in FIGURES.values():
        ids = tokenizer(f"{word} {figure}", add_special_tokens=False)["input_ids"]
        start = len(tokenizer(word, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        scores.append(sum(float(logits[place - 1, ids[place]]) for place in range(start, len(ids))))
    return scores.index(max(scores))


@pytest.mark.usefixtures("no_network")
def test_a_local_task_of_lm_eval_gives_the_share_that_can_be_counted_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    task = str(local_task(tmp_path / "tasks"))
    shares = set()
    for seed in range(3):
        model = tiny_model("llama", seed=seed)
        by_hand = sum(likeliest(model, word) == place for place, word in enumerate(FIGURES)) / len(FIGURES)
        found = run_lm_eval(model, tiny_tokenizer(), [task])
        assert found["local_figures"]["acc"] == by_hand
        shares.add(by_hand)
    assert len(shares) > 1
    with pytest.raises(SettingsError, match="does not accept these options"):
        run_lm_eval(tiny_model("llama"), tiny_tokenizer(), [task], {"fewshots": 3})


@pytest.mark.slow  # lm-eval takes 20 s to list its tasks
def test_a_task_that_lm_eval_does_not_know_is_named() -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(SettingsError, match="knows no task mmluu"):
        run_lm_eval(tiny_model("llama"), tiny_tokenizer(), ["mmluu"])


@pytest.mark.usefixtures("no_network")
def test_lm_eval_on_the_command_line_alone_and_beside_rows(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    task = local_task(tmp_path / "tasks")
    run("--model", model, "--lm-eval", task, "--lm-eval-param", "limit=2", "--out", tmp_path / "alone")
    alone = Evaluation.load(tmp_path / "alone")
    assert alone.benchmarks["local_figures"]["acc"] in (0, 0.5, 1)
    assert not alone.overall
    assert "local_figures" in capsys.readouterr().out
    run("--model", model, "--eval", data, "--metrics", "loss", "--lm-eval", task, "--out", tmp_path / "both")
    both = Evaluation.load(tmp_path / "both")
    assert set(both.overall) == {"loss"}
    assert both.settings["lm_eval"] == [str(task)]


def test_without_lm_eval_the_line_that_installs_it_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
    assert run("--model", model, "--lm-eval", "mmlu") == 2
    assert "pip install lm-eval" in capsys.readouterr().err
