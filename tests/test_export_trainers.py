"""Chosen rows reach the trainer: the right rows, in order, with their weights, learnt from as pursuit did."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from pursuit import Run, Selection, export_selection, export_subset
from pursuit.cli import main
from pursuit.errors import DataError, SettingsError, StoreError
from pursuit.export.formats import write_for_trainer
from pursuit.pool import Pool
from tiny import tiny_tokenizer

FORMATS = ["trl", "llama-factory", "axolotl", "messages", "parquet"]
PAIRS = [{"prompt": f"question {i} é\u2028", "response": f"answer {i}", "source": "ab"[i % 2]} for i in range(12)]
WEIGHTS = [0.1, 2.5, 0.0]


def turns(*said: tuple[str, str], untrained: tuple[int, ...] = ()) -> dict:
    return {
        "messages": [
            {"role": role, "content": content, **({"weight": 0} if place in untrained else {})}
            for place, (role, content) in enumerate(said)
        ]
    }


TWICE = turns(("system", "Be brief."), ("user", "a"), ("assistant", "A"), ("user", "b"), ("assistant", "B"))
SECOND = turns(("user", "c"), ("assistant", "C"), ("user", "d"), ("assistant", "D"), untrained=(1,))
ENDS_ASKING = turns(("user", "e"), ("assistant", "E"), ("user", "f"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A run with a selection whose weights are not all 1, and its subset with the table beside it."""
    folder = tmp_path_factory.mktemp("run")
    write(folder / "pool.jsonl", PAIRS)
    run = Run(folder / "run", model=model, pool=folder / "pool.jsonl")
    result = run.select("random", 3, seed=3, out=folder / "subset.jsonl")
    weighted = Selection(result.selection.indices, np.array(WEIGHTS), "weighted", 12)
    weighted.save(run.folder.selections / "weighted-3-abc")
    table = pq.read_table(result.table).drop(["weight"]).append_column("weight", pa.array(WEIGHTS))
    pq.write_table(table, result.table)
    return run, weighted, folder


def write(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def examples(tmp_path, *rows):
    write(tmp_path / "rows.jsonl", rows)
    return list(Pool(tmp_path / "rows.jsonl"))


def loaded(path, cache) -> list[dict]:
    kind = "parquet" if path.suffix == ".parquet" else "json"
    return load_dataset(kind, data_files=str(path), split="train", cache_dir=str(cache)).to_list()


def said(row: dict) -> list[tuple[str, str]]:
    """The conversation of an exported row, whatever the format."""
    if "conversations" in row:
        names = {"human": "user", "gpt": "assistant", "observation": "tool"}
        system = [("system", row["system"])] if row["system"] else []
        return system + [(names[turn["from"]], turn["value"]) for turn in row["conversations"]]
    listed = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    return [(turn["role"], turn["content"]) for turn in listed]


@pytest.mark.parametrize("to", FORMATS)
def test_a_selection_is_exported_in_order_with_its_weights_and_loads(finished, tmp_path, to):
    run, selection, folder = finished
    out = tmp_path / ("out.parquet" if to == "parquet" else "out.jsonl")
    exported = export_selection(run, selection, to, out)
    rows = loaded(exported.path, tmp_path / "cache")
    assert exported.count == len(rows) == 3
    expected = [PAIRS[index] for index in selection.indices]
    assert [said(row) for row in rows] == [[("user", r["prompt"]), ("assistant", r["response"])] for r in expected]
    assert [row["weight"] for row in rows] == WEIGHTS
    assert [row["source"] for row in rows] == [row["source"] for row in expected]
    other = tmp_path / ("again.parquet" if to == "parquet" else "again.jsonl")
    export_subset(folder / "subset.jsonl", to, other)
    assert loaded(other, tmp_path / "cache") == rows


def test_trl_learns_from_exactly_the_completion(finished, tmp_path):
    """TRL's own preparation of the exported file leaves labels on the response only."""
    trl = pytest.importorskip("trl")
    from tiny import tiny_model

    run, selection, _ = finished
    export_selection(run, selection, "trl", tmp_path / "trl.jsonl")
    data = load_dataset("json", data_files=str(tmp_path / "trl.jsonl"), split="train", cache_dir=str(tmp_path / "c"))
    tokenizer = tiny_tokenizer()
    config = trl.SFTConfig(str(tmp_path / "o"), report_to=[], use_cpu=True, bf16=False, eos_token="<|im_end|>")
    trainer = trl.SFTTrainer(tiny_model("llama"), config, train_dataset=data, processing_class=tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    pairs = zip(batch["input_ids"], batch["labels"], strict=True)
    learnt = sorted(tokenizer.decode(ids[labels != -100]).strip() for ids, labels in pairs)
    assert learnt == sorted(PAIRS[index]["response"] + "<|im_end|>" for index in selection.indices)


def test_trl_takes_whole_conversations_where_several_turns_are_learnt_from(tmp_path):
    exported = write_for_trainer(examples(tmp_path, TWICE, PAIRS[0]), [1, 2], "trl", tmp_path / "x.jsonl")
    rows = loaded(exported.path, tmp_path / "cache")
    assert said(rows[0]) == [(turn["role"], turn["content"]) for turn in TWICE["messages"]]
    assert set(rows[0]) == {"messages", "source", "weight"}
    assert "assistant_only_loss=True" in exported.notes[0]
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: .*TRL cannot tell them apart.*axolotl"):
        write_for_trainer(examples(tmp_path, TWICE, SECOND), [1, 2], "trl", tmp_path / "y.jsonl")
    assert not (tmp_path / "y.jsonl").exists()


def test_learning_from_the_last_turn_only_makes_every_conversation_a_prompt_with_a_completion(tmp_path):
    rows = examples(tmp_path, TWICE, SECOND, ENDS_ASKING)
    exported = write_for_trainer(rows, [1, 2, 3], "trl", tmp_path / "x.jsonl", train_on="last")
    completions = [row["completion"] for row in loaded(exported.path, tmp_path / "cache")]
    assert completions == [[{"role": "assistant", "content": text}] for text in "BDE"]


def test_axolotl_and_parquet_mark_each_turn_and_messages_those_not_learnt_from(tmp_path):
    rows = examples(tmp_path, TWICE, SECOND)
    for to, out in (("axolotl", tmp_path / "a.jsonl"), ("parquet", tmp_path / "p.parquet")):
        first, second = loaded(write_for_trainer(rows, [1, 2], to, out).path, tmp_path / "cache")
        assert [turn["train"] for turn in first["messages"]] == [False, False, True, False, True]
        assert [turn["train"] for turn in second["messages"]] == [False, False, False, True]
    back = list(Pool(write_for_trainer(rows, [1, 2], "messages", tmp_path / "m.jsonl").path))
    assert [example.messages for example in back] == [example.messages for example in rows]


def test_llama_factory_is_told_where_the_file_is_and_what_to_mask(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
    rows = examples(tmp_path, TWICE, PAIRS[1], ENDS_ASKING)
    exported = write_for_trainer(rows, [1, 2, 3], "llama-factory", tmp_path / "x.jsonl")
    assert json.loads((tmp_path / "dataset_info.json").read_text()) == {
        "mine": {"file_name": "mine.json"},
        "x": {
            "file_name": "x.jsonl", "formatting": "sharegpt",
            "columns": {"messages": "conversations", "system": "system"},
        },
    }  # fmt: skip
    first, second, third = loaded(exported.path, tmp_path / "cache")
    assert first["system"] == "Be brief."
    assert [turn["from"] for turn in first["conversations"]] == ["human", "gpt", "human", "gpt"]
    assert second["system"] == ""
    assert third["conversations"][-1] == {"from": "gpt", "value": "E"}
    assert "mask_history" not in " ".join(exported.notes)
    masked = write_for_trainer(examples(tmp_path, SECOND, PAIRS[1]), [1, 2], "llama-factory", tmp_path / "y.jsonl")
    assert "mask_history: true" in masked.notes[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([TWICE, SECOND], "line 1: .*LLaMA-Factory cannot tell them apart"),
        ([turns(("user", "a"), ("user", "b"), ("assistant", "c"))], "line 1: .*must take turns, but turn 2 is user"),
        ([turns(("assistant", "hello"))], "turn 1 is assistant"),
    ],
)
def test_rows_that_llama_factory_would_drop_or_learn_otherwise_are_errors(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        write_for_trainer(examples(tmp_path, *rows), [1.0] * len(rows), "llama-factory", tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


def test_plain_text_goes_out_as_text_and_beside_conversations_only_into_parquet(tmp_path):
    texts = examples(tmp_path, {"text": "one"}, {"text": "two"})
    for to in FORMATS[:4]:
        rows = loaded(write_for_trainer(texts, [1, 2], to, tmp_path / f"{to}.jsonl").path, tmp_path / "cache")
        assert rows == [
            {"text": "one", "source": "rows", "weight": 1.0}, {"text": "two", "source": "rows", "weight": 2.0},
        ]  # fmt: skip
    mixed = examples(tmp_path, PAIRS[0], {"text": "two"})
    for to in FORMATS[:4]:
        with pytest.raises(DataError, match=r"line 2: .*conversations or plain text, not both"):
            write_for_trainer(mixed, [1, 2], to, tmp_path / "mixed.jsonl")
    rows = loaded(write_for_trainer(mixed, [1, 2], "parquet", tmp_path / "m.parquet").path, tmp_path / "cache")
    assert [row["text"] for row in rows] == [None, "two"]
    assert rows[1]["messages"] is None
    assert rows[0]["rank"] == 1


def test_a_selection_is_found_by_name_beginning_or_path(finished, tmp_path):
    run, _, _ = finished
    folder = run.folder.selections / "weighted-3-abc"
    for number, name in enumerate(("weighted", "weighted-3-abc", folder)):
        export_selection(run, name, "messages", tmp_path / f"{number}.jsonl")
        assert (tmp_path / f"{number}.jsonl").read_bytes() == (tmp_path / "0.jsonl").read_bytes()
    for name, message in ((None, "name one of them"), ("tagcos", "no selection 'tagcos'. Here are: random-3-")):
        with pytest.raises(SettingsError, match=message):
            export_selection(run, name, "messages", tmp_path / "x.jsonl")


def test_the_command_writes_the_same_and_says_what_to_set(finished, tmp_path, capsys):
    run, selection, folder = finished
    out, expected = tmp_path / "cli.jsonl", tmp_path / "python.jsonl"
    export_selection(run, selection, "trl", expected)
    for source in (f"--run {run.folder.path} --selection weighted", f"--subset {folder / 'subset.jsonl'}"):
        with pytest.raises(SystemExit) as ended:
            main([*f"export {source} --to trl --out".split(), str(out)])
        assert not ended.value.code
        assert out.read_bytes() == expected.read_bytes()
        assert "column weight" in capsys.readouterr().out
        out.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--to trl --out x.jsonl", "name what to export"),
        ("--to trl --out x.jsonl --subset {folder}/subset.jsonl --selection random", "give one of them"),
        ("--to chatml --out x.jsonl --subset {folder}/subset.jsonl", "no such format"),
        ("--to trl --out x.json --subset {folder}/subset.jsonl", "writes .jsonl"),
        ("--to trl --out {folder}/subset.jsonl --subset {folder}/subset.jsonl", "would overwrite"),
        ("--to trl --out {folder}/pool.jsonl --run {folder}/run --selection random", "would overwrite"),
        ("--to trl --out x.jsonl --subset {folder}/pool.jsonl", "pool.chosen.parquet: is missing"),
    ],
)
def test_wrong_requests_are_errors_that_say_what_is_wrong(finished, arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(f"export {arguments.format(folder=finished[2])}".split())
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_pool_or_subset_that_changed_since_is_found_out(finished, model, tmp_path):
    write(tmp_path / "pool.jsonl", PAIRS)
    run = Run(tmp_path / "run", model=model, pool=tmp_path / "pool.jsonl")
    selection = run.select("random", 3, out=tmp_path / "subset.jsonl").selection
    write(tmp_path / "pool.jsonl", PAIRS[::-1])
    with pytest.raises(StoreError, match="the pool has changed"):
        export_selection(Run(tmp_path / "run"), selection, "messages", tmp_path / "x.jsonl")
    write(tmp_path / "subset.jsonl", PAIRS[:4])
    with pytest.raises(DataError, match=r"has 3 rows, but .*subset.jsonl has 4"):
        export_subset(tmp_path / "subset.jsonl", "messages", tmp_path / "x.jsonl")
