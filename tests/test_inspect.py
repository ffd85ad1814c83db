"""`pursuit inspect`: what it counts is what stands in the files, and what it shows is what will be learnt from."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pursuit.cli import main
from pursuit.encoding import Encoder
from pursuit.errors import RunError, SettingsError
from pursuit.inspection import Inspection, inspect, print_inspection
from pursuit.inspection.data import RefusalGroup
from pursuit.inspection.terminal import print_prospects
from pursuit.pool import Pool
from pursuit.run.run import Run
from test_run import run_main
from tiny import CHATML, tiny_model, tiny_tokenizer

MAX_LENGTH = 64
MALFORMED, OTHER_MALFORMED, EMPTY, LATE = "{bad", '{"prompt": }', '{"prompt": "x", "response": " "}', "x" * 300
LONG = "one two three four five six seven eight nine ten " * 5
HOSTILE = "[red]alarm[/red] \x1b[2J\x1b]0;title\x07 ⟦fake⟧ [/] \u202edrow"
SMALL: dict[str, Any] = {
    "max_length": MAX_LENGTH, "lora": {"rank": 2}, "warmup": {"checkpoint_steps": [1, 2], "batch_size": 4},
    "features": {"dimension": 1024, "shard_rows": 32},
}  # fmt: skip


def row(prompt: str, response: str) -> dict[str, str]:
    return {"prompt": prompt, "response": response}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer(CHATML).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.jsonl: 30 good rows, 2 copies of line 1, another response to line 2, one long and one hostile row, 5 bad ones.
    b.parquet: 12 good rows. target.jsonl: line 1 of a.jsonl, and the prompt of its line 3."""
    folder = tmp_path_factory.mktemp("pool")
    good = [row(f"What is {number}?", f"It is {number}.") for number in range(30)]
    rows = [*good, good[0], good[0], row("What is 1?", "One."), row("Count.", LONG), row(HOSTILE, HOSTILE)]
    lines = [json.dumps(entry) for entry in rows]
    lines += [MALFORMED, OTHER_MALFORMED, EMPTY, json.dumps({"prompt": "alone"}), json.dumps(row(LATE, "late"))]
    (folder / "a.jsonl").write_text("\n".join(lines) + "\n")
    said = [row(f"Say {number}", "yes " * number) for number in range(1, 13)]
    pq.write_table(pa.Table.from_pylist(said), folder / "b.parquet")
    (folder / "target.jsonl").write_text("\n".join(map(json.dumps, (good[0], row("What is 2?", "Two."), {"text": ""}))))
    return folder


def look(model: Path, files: Path, *, folder: Path | None = None, **changes: Any) -> Inspection:
    pool = [str(files / "a.jsonl"), str(files / "b.parquet")]
    return inspect(folder, **{"model": str(model), "pool": pool, "measure": False, **SMALL, **changes})


@pytest.fixture(scope="module")
def found(model: Path, files: Path) -> Inspection:
    return look(model, files, examples=6, target=[str(files / "target.jsonl")])


@pytest.fixture(scope="module")
def encode(files: Path) -> Callable[[str, int], Any]:
    """Encodes the row of a file and line on its own."""
    encoder = Encoder(tiny_tokenizer(CHATML), max_length=MAX_LENGTH)
    pool = Pool([files / "a.jsonl", files / "b.parquet"], on_bad_row="skip")
    examples = {(example.path, example.line): example for example in pool}
    return lambda path, line: encoder.encode(examples[path, line])


def printed(found: Inspection, *, terminal: bool = False, width: int = 200) -> str:
    output = io.StringIO()
    colours: Any = "standard" if terminal else None
    print_inspection(found, Console(file=output, force_terminal=terminal, width=width, color_system=colours))
    return output.getvalue()


def test_rows_are_counted_whether_good_or_bad(found: Inspection) -> None:
    assert (found.pool.rows, found.pool.usable, found.pool.refused) == (52, 47, 5)
    assert [(source.source, source.rows) for source in found.pool.sources] == [("a", 35), ("b", 12)]
    assert sum(source.share for source in found.pool.sources) == pytest.approx(1)


def test_refused_rows_are_grouped_by_reason_with_the_first_place_of_each(found: Inspection, files: Path) -> None:
    groups = {group.line: (group.count, group.reason) for group in found.pool.refusals}
    assert sorted(groups) == [36, 37, 38, 39, 40]
    assert "empty response" in groups[38][1]
    assert "cut off" in groups[40][1]
    twice = inspect_lines(found, files, [MALFORMED, "{worse", EMPTY])
    assert [(group.count, group.line) for group in twice] == [(2, 2), (1, 4)]


def test_every_kind_of_reason_is_in_the_table_up_to_a_limit(found: Inspection) -> None:
    groups = tuple(RefusalGroup(f"reason {number}", 1, "a.jsonl", number) for number in range(31))
    said = printed(replace(found, pool=replace(found.pool, refusals=groups[:30])))
    assert "reason 29" in said
    assert "more kind" not in said
    assert "1 more kind of reasons" in printed(replace(found, pool=replace(found.pool, refusals=groups)))


def test_one_is_not_said_in_the_plural(model: Path, tmp_path: Path) -> None:
    good = row("What is 1?", "It is 1.")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, (good, good, row("Count.", LONG)))))
    (tmp_path / "b.jsonl").write_text(json.dumps(good))
    found = inspect(model=str(model), pool=[str(tmp_path / "a.jsonl")], target=[str(tmp_path / "b.jsonl")], **SMALL,
                    measure=False)  # fmt: skip
    said = printed(found)
    assert "Truncated to" in said
    assert "1 row, losing" in said
    assert "Exact duplicates: 1 row more than texts, in 1 group; the largest has 2 rows" in said
    assert "0 prompts, 0 rows" in said
    assert "The target\n1 row, 1 usable, 0 refused" in said
    found = replace(found, pool=replace(found.pool, refused=1, first_refused=("a.jsonl", 1)), warnings=())
    assert not re.search(r"\b1 (refused |pool )?(rows|groups|prompts)\b", printed(found))
    assert "the first of 1 refused row of the pool" in printed(found)


def inspect_lines(found: Inspection, files: Path, bad: list[str]) -> list[Any]:
    path = files / "bad.jsonl"
    path.write_text("\n".join([json.dumps(row("good", "row")), *bad]))
    return list(inspect(model=found.model, pool=[str(path)], measure=False, **SMALL).pool.refusals)


def test_lengths_and_tokens_are_those_of_the_encoder(
    found: Inspection, encode: Callable[[str, int], Any], files: Path
) -> None:
    places = [(str(files / "a.jsonl"), line) for line in range(1, 36)]
    places += [(str(files / "b.parquet"), line) for line in range(1, 13)]
    lengths = sorted(len(encode(*place).input_ids) for place in places)
    shown = found.pool.lengths
    assert shown is not None
    assert (shown.minimum, shown.median, shown.maximum) == (lengths[0], lengths[23], lengths[-1])
    assert shown.total == sum(lengths) == sum(source.tokens for source in found.pool.sources)
    for low, high, rows in shown.histogram:
        assert rows == sum(low <= length <= high for length in lengths)
    assert sum(rows for _, _, rows in shown.histogram) == 47


def test_truncation_says_how_many_response_tokens_are_lost(found: Inspection, files: Path) -> None:
    whole = Encoder(tiny_tokenizer(CHATML), max_length=10_000)
    rows = [whole.encode(example) for example in Pool(files / "a.jsonl", on_bad_row="skip")]
    cut = [entry for entry in rows if entry.full_length > MAX_LENGTH and entry.response[:MAX_LENGTH].any()]
    assert len(cut) == 2
    assert found.pool.truncation.rows == 2
    assert found.pool.truncation.tokens == sum(entry.full_length - MAX_LENGTH for entry in cut)
    assert found.pool.truncation.response_tokens == sum(int(entry.response[MAX_LENGTH:].sum()) for entry in cut) > 0


def test_duplicates_and_other_responses_to_one_prompt_are_told_apart(found: Inspection, files: Path) -> None:
    same = found.pool.duplicates
    assert (same.groups, same.extra, same.largest, same.first) == (1, 2, 3, (str(files / "a.jsonl"), 1))
    assert (same.prompts, same.prompt_rows) == (1, 2)


def test_rows_that_also_stand_in_the_target_are_counted(found: Inspection) -> None:
    assert found.target is not None
    assert (found.target.pool.usable, found.target.pool.refused) == (2, 1)
    assert (found.target.leaked, found.target.leaked_prompts) == (3, 4)
    assert any("also stand in the target" in warning for warning in found.warnings)


def test_examples_are_spread_over_sources_and_their_masks_are_the_encoders(
    found: Inspection, encode: Callable[[str, int], Any]
) -> None:
    assert [example.source for example in found.examples] == ["a"] * 3 + ["b"] * 3
    tokenizer = tiny_tokenizer(CHATML)
    for example in found.examples:
        encoded = encode(example.path, example.line)
        response = tokenizer.decode(encoded.input_ids[encoded.response])
        assert "".join(text for text, flag in example.segments if flag) == response
        assert "".join(text for text, _ in example.segments) == tokenizer.decode(encoded.input_ids)
        assert (example.tokens, example.response_tokens) == (len(encoded.input_ids), int(encoded.response.sum()))


def test_without_colours_brackets_stand_around_exactly_the_response(found: Inspection) -> None:
    output = printed(found).split("The pool")[0]
    marks = re.findall("⟦([^⟧]*)⟧", output.split("⟦ ⟧", 1)[1])
    shown = [text for example in found.examples for text, flag in example.segments if flag]
    assert marks == shown


def test_on_a_terminal_the_response_has_a_background(found: Inspection) -> None:
    output = printed(found, terminal=True).split("The pool")[0]
    response = next(text for text, flag in found.examples[0].segments if flag)
    assert f"\x1b[30;42m{response}\x1b[0m" in output
    assert "⟦" not in output


def test_texts_of_the_data_neither_style_nor_steer_the_terminal(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "hostile.jsonl"
    path.write_text("\n".join([
        json.dumps({**row(HOSTILE, HOSTILE), "source": "[bold]s[/bold]\x1b[31m"}),
        json.dumps({"prompt": "a", "[blink]field\x1b[5m": "b"}),
    ]))  # fmt: skip
    found = inspect(model=str(model), pool=[str(path)], measure=False, **{**SMALL, "max_length": 250})
    plain = printed(found)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", plain)
    for kept in ("[red]alarm[/red]", "[bold]s[/bold]", "[blink]field"):
        assert kept in plain
    assert "[[fake]]" in plain
    assert "⟦fake" not in plain
    assert set(re.findall("\x1b[^m]*m", printed(found, terminal=True))) <= {
        f"\x1b[{style}m" for style in ("0", "1", "2", "1;4", "30;42", "33")
    }


@pytest.mark.parametrize(
    ("on_bad_row", "says"), [("error", "would stop at the first of 5"), ("skip", "47 rows, without the 5 refused")]
)
def test_the_outlook_says_what_select_would_do(model: Path, files: Path, on_bad_row: str, says: str) -> None:
    found = look(model, files, on_bad_row=on_bad_row, examples=0)
    assert says in found.outlook
    assert says in " ".join(printed(found).split())
    assert (found.pool.usable, found.pool.refused) == (47, 5)


@pytest.mark.parametrize(("on_bad_row", "status"), [("error", 1), ("skip", 0)])
def test_the_command_ends_with_a_status(
    model: Path, files: Path, on_bad_row: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = ["--pool", str(files / "a.jsonl"), "--on-bad-row", on_bad_row, "--no-measure"]
    code, text = run_main("inspect", "--model", model, *pool, capsys=capsys)
    assert code == status, text


def test_a_pool_without_a_usable_row_is_shown_and_not_only_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text("\n".join([MALFORMED, EMPTY, json.dumps(row(LATE, "late"))]))
    (tmp_path / "empty.jsonl").write_text("")
    pool = [str(tmp_path / "bad.jsonl"), str(tmp_path / "empty.jsonl")]
    found = inspect(model=str(model), pool=pool, **SMALL)
    assert (found.pool.rows, found.pool.usable, found.pool.refused, found.prediction) == (3, 0, 4, None)
    assert "no row of the pool can be used" in printed(found)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_inspecting_a_run_uses_its_settings_and_changes_nothing_stored(
    model: Path, files: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", model=model, pool=files / "b.parquet", **SMALL)
    run.encode()
    before = contents(tmp_path)
    found = inspect(tmp_path / "run", examples=1)
    assert (found.max_length, found.pool.usable) == (MAX_LENGTH, 12)
    assert contents(tmp_path) == before
    with pytest.raises(RunError, match="max_length"):
        inspect(tmp_path / "run", max_length=32)


def test_inspect_leaves_a_run_as_it_is(model: Path, files: Path, tmp_path: Path) -> None:
    Run(tmp_path / "run", model=model, pool=files / "b.parquet", **SMALL).encode()
    before = contents(tmp_path / "run")
    inspect(tmp_path / "run", measure=False)
    assert contents(tmp_path / "run") == before != {}


def test_a_folder_without_a_run_stays_as_it_is(model: Path, files: Path, tmp_path: Path) -> None:
    look(model, files, folder=tmp_path / "new", examples=0)
    assert not (tmp_path / "new").exists()


def test_model_or_pool_missing_is_an_error_that_names_the_flag(model: Path) -> None:
    with pytest.raises(SettingsError, match="--pool"):
        inspect(model=str(model))
    with pytest.raises(SettingsError, match="--model"):
        inspect(pool=["a.jsonl"])


def test_the_command_prints_examples_counts_and_outlook(
    model: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--max-length", str(MAX_LENGTH), "--lora.rank", "2", "--warmup.checkpoint-steps", "1", "2"]
    with contextlib.suppress(SystemExit):
        main(["inspect", "--model", str(model), "--pool", str(files / "b.parquet"), *arguments])
    output = capsys.readouterr().out
    assert "⟦" in output
    assert "12 rows, 12 usable, 0 refused" in output
    assert "Measured on cpu" in " ".join(output.split())
    assert "select would choose from 12 rows." in " ".join(output.split())


def test_time_has_a_price_where_one_is_given(found: Inspection) -> None:
    assert found.prediction is not None
    known = replace(found.prediction, warmup_seconds=1800.0, feature_seconds=5400.0, target_seconds=0.0)
    priced, plain = io.StringIO(), io.StringIO()
    print_prospects(replace(found, prediction=known), Console(file=priced, width=120), 3.0, "EUR")
    print_prospects(replace(found, prediction=known), Console(file=plain, width=120))
    costs = [line.split(" EUR")[0].split()[-1] for line in priced.getvalue().splitlines() if " EUR" in line]
    assert costs == ["1.50", "4.50", "6.00"]
    assert "money" not in plain.getvalue()


@pytest.mark.parametrize("command", [
    ["inspect"], ["report", "--run", "x"],
    ["compare", "--run", "x", "--methods", "random", "--budgets", "5%", "--eval", "e.jsonl", "--out", "o"],
])  # fmt: skip
def test_a_price_below_nothing_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--price-per-hour", "-1"])
    assert stopped.value.code
    printed = capsys.readouterr()
    assert "--price-per-hour" in printed.out + printed.err
