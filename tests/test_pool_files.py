"""Every kind of file and compression gives the same rows; names, globs, sources and what is wrong with files."""

from __future__ import annotations

import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pursuit.errors import DataError, SettingsError
from pursuit.pool import Pool, readers

ROWS = [{"prompt": f"Frage {number} – ü?", "response": f'answer, "{number}"\nnext'} for number in range(600)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def write_csv(path: Path, delimiter: str = ",") -> None:
    import csv

    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, ["prompt", "response"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.ndjson": lambda path: path.write_bytes(LINES),
    "crlf.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + LINES.replace(b"}\n", b"}\r\n")),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "a.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(LINES[:999]) + zstandard.compress(LINES[999:])),
    "lines.json": lambda path: path.write_bytes(LINES),
    "array.json": lambda path: path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False)),
    "array.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
}


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    pool = Pool(tmp_path / name)
    examples = list(pool)
    assert [[turn.content for turn in example.messages or ()] for example in examples] == [
        [row["prompt"], row["response"]] for row in ROWS
    ]
    assert [example.row for example in examples] == list(range(len(ROWS)))
    assert [json.loads(example.raw) for example in examples] == ROWS
    assert pool.count_rows() == len(ROWS)
    assert list(pool.take([599, 3, 3])) == [examples[3], examples[599]]
    assert list(pool.stream(start=590)) == examples[590:]


def test_json_lines_keep_their_very_bytes(tmp_path: Path) -> None:
    lines = [b'{ "text" : "a\\u00e9" , "x":1.50}', '{"text":"ü"}\t'.encode(), b'{"text": "c", "text": "d"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([lines[0], b"  ", lines[1], lines[2]]))
    examples = list(Pool(tmp_path / "a.jsonl"))
    assert [example.raw for example in examples] == lines
    assert [example.line for example in examples] == [1, 3, 4]


def test_lines_of_csv_and_json_arrays_are_where_the_row_starts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n\n"one\ntwo",1\nthree,2\n\nfour,3\n')
    (tmp_path / "b.json").write_text('[\n {"text":\n  "a"},\n\n {"text": "b"}\n]\n')
    assert [example.line for example in Pool(tmp_path / "a.csv")] == [2, 4, 6]
    assert [example.line for example in Pool(tmp_path / "b.json")] == [2, 5]


def test_rows_of_a_json_array_on_one_line_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}, {"text": "b"}, {"no": "c"}]))
    pool = Pool(tmp_path / "a.json", on_bad_row="skip")
    assert [row.line for row in pool.stream()] == [1, 2, 3]
    (tmp_path / "b.json").write_text('[{"text": "a"}, {"text": "b"}, {"text": "c"},\n\n\n\n{"text": "d"}]')
    assert [example.line for example in Pool(tmp_path / "b.json")] == [1, 2, 3, 5]
    (tmp_path / "c.json").write_text('[{"text": "a"}, {"text": "b"')
    with pytest.raises(DataError, match=r"c\.json, line 2: malformed JSON"):
        list(Pool(tmp_path / "c.json"))


@pytest.mark.parametrize(
    ("content", "line", "expected"),
    [
        ("text,n\na,1\nb\n", 3, "has 1 columns where the header has 2"),
        ('text,n\na,1\n"b"c,2\n', 3, "malformed CSV"),
        ('text,n\na,1\n"b,2\n', 3, "malformed CSV: unexpected end of data"),
        ("text,text\na,1\n", 1, "the header names 'text' more than once"),
        (b"text,n\na,1\n\xff,2\n", 3, "not valid UTF-8"),
    ],
)
def test_a_bad_csv_row_is_named(tmp_path: Path, content: str | bytes, line: int, expected: str) -> None:
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        list(Pool(tmp_path / "a.csv"))
    assert caught.value.line == line
    assert expected in caught.value.reason


@pytest.mark.parametrize(
    ("content", "line", "expected"),
    [
        ('[{"text": "a"},\n{"text": "b"', 2, "malformed JSON"),
        ('[{"text": "a"}\n{"text": "b"}]', 1, "after a row stands '{' instead of ',' or ']'"),
        ('[{"text": "a"},\n{"text": nope}]', 2, "malformed JSON: Expecting value"),
        ('[{"text": "a"},\n7]', 2, "must be a JSON object"),
    ],
)
def test_a_bad_json_array_is_named(tmp_path: Path, content: str, line: int, expected: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError) as caught:
        list(Pool(tmp_path / "a.json"))
    assert caught.value.line == line
    assert expected in caught.value.reason


def test_invalid_utf8_in_one_line_costs_only_that_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n{"text": "c"}\n')
    pool = Pool(tmp_path / "a.jsonl", on_bad_row="skip")
    assert [example.text for example in pool] == ["a", "c"]
    assert (pool.refused[0].line, pool.refused[0].reason) == (2, "not valid UTF-8 at byte 11 of the line")


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.jsonl.zst", "a.parquet"])
def test_a_cut_off_file_is_an_error_and_not_a_shorter_pool(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) - 40])
    with pytest.raises(DataError, match="the file cannot be read from here on"):
        list(Pool(tmp_path / name))


def test_an_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n \n")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: the file holds no rows"):
        list(Pool([tmp_path / "a.jsonl", tmp_path / "b.jsonl"]))
    skipping = Pool([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], on_bad_row="skip")
    assert [(example.row, example.text) for example in skipping] == [(0, "b")]
    assert skipping.refused[0].path.endswith("a.jsonl")


def test_a_missing_file_is_named_with_the_names_near_it(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "b"}\n')
    with pytest.raises(DataError, match=r"trian\.jsonl: there is no such file\. Near it: train\.jsonl"):
        Pool(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="no file matches this pattern"):
        Pool(tmp_path / "*.parquet")
    with pytest.raises(DataError, match="and no folder"):
        Pool(tmp_path / "nowhere" / "train.jsonl")


def test_a_file_of_unknown_kind_a_file_given_twice_and_no_file_are_errors(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "a.jsonl").write_text('{"text": "b"}\n')
    with pytest.raises(DataError, match=r"notes\.txt: its kind cannot be told from its name\. Accepted are \.jsonl"):
        Pool(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="is given twice"):
        Pool([tmp_path / "a.jsonl", f"{tmp_path}/*.jsonl"])
    with pytest.raises(DataError, match="no pool was given"):
        Pool([])
    with pytest.raises(SettingsError, match="'ignore' is not accepted; use 'error' or 'skip'"):
        Pool(tmp_path / "a.jsonl", on_bad_row="ignore")  # type: ignore[arg-type]


def test_sources_are_named_by_the_user_else_by_the_row_else_by_the_file(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        (tmp_path / name).write_text('{"text": "x", "source": "row", "task": 7}\n{"text": "y"}\n')
    pool = Pool([f"mine={tmp_path}/a.jsonl", tmp_path / "b.jsonl"])
    assert [example.source for example in pool] == ["mine", "mine", "row", "b"]
    by_task = Pool(tmp_path / "c.jsonl", source_field="task")
    assert [example.source for example in by_task] == ["7", "c"]
    assert [example.source for example in Pool(tmp_path / "c.jsonl", fields={"source": "task"})] == ["7", "c"]


def test_globs_give_the_files_sorted(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    assert [example.source for example in Pool(f"{tmp_path}/*.jsonl")] == ["a", "b"]
    assert [example.source for example in Pool(f"both={tmp_path}/*.jsonl")] == ["both", "both"]


def test_files_can_be_read_through_fsspec() -> None:
    with fsspec.open("memory://pool/a.jsonl.gz", "wb") as handle:
        handle.write(gzip.compress(LINES))
    pool = Pool("memory://pool/*.jsonl.gz")
    assert [json.loads(example.raw) for example in pool] == ROWS
    assert pool.sources[0].name == "a"
    assert len(pool.fingerprint()) == 16
    with pytest.raises(DataError, match="no such file"):
        Pool("memory://pool/none.jsonl")


def test_splits_of_saved_data_sets_and_folders_that_datasets_loads(tmp_path: Path) -> None:
    train, test = (datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test"))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "saved")
    assert [example.text for example in Pool(tmp_path / "saved")] == ["train"]
    assert [example.text for example in Pool(f"{tmp_path}/saved:test")] == ["test"]
    with pytest.raises(DataError, match="has no split 'dev'; its splits are train, test"):
        Pool(f"{tmp_path}/saved:dev")
    (tmp_path / "plain").mkdir()
    for split in ("train", "test"):
        (tmp_path / "plain" / f"{split}.jsonl").write_text(json.dumps({"text": split}) + "\n")
    assert [example.text for example in Pool(tmp_path / "plain")] == ["train"]
    assert [example.text for example in Pool(f"{tmp_path}/plain:test")] == ["test"]
    assert Pool(tmp_path / "plain").fingerprint() != Pool(f"{tmp_path}/plain:test").fingerprint()


def test_slices_of_a_data_set_have_fingerprints_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "train.jsonl").write_bytes(LINES)
    first, second = (Pool(f"{tmp_path}/plain:train[{cut}]") for cut in (":10", "10:20"))
    assert [len(list(pool)) for pool in (first, second)] == [10, 10]
    assert first.fingerprint() != second.fingerprint()


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="the folder could not be loaded by `datasets`"):
        Pool(tmp_path / "nothing")


def test_the_fingerprint_depends_on_content_order_names_and_mapping(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    a, b = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    prints = [
        Pool([a, b]).fingerprint(),
        Pool([b, a]).fingerprint(),
        Pool([f"x={a}", b]).fingerprint(),
        Pool([a, b], fields={"text": "text"}).fingerprint(),
        Pool([a, b], source_field="task").fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    assert Pool([a, b], on_bad_row="skip").fingerprint() == prints[0]
    (tmp_path / "a.jsonl").write_text('{"text": "A"}\n')
    assert Pool([a, b]).fingerprint() != prints[0]


def test_take_of_a_row_that_is_not_there_or_bad_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{\n{"text": "c"}\n')
    pool = Pool(tmp_path / "a.jsonl", on_bad_row="skip")
    assert [example.text for example in pool.take([2, 0])] == ["a", "c"]
    with pytest.raises(DataError, match=r"row 3 was asked for, but the pool has 3 rows"):
        list(pool.take([0, 3]))
    with pytest.raises(DataError, match=r"line 2: malformed"):
        list(pool.take([1]))


@pytest.mark.parametrize("name", ["big.jsonl", "big.json", "big.parquet", "big.csv"])
def test_memory_does_not_grow_with_the_pool(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    row = {"text": "word " * 400}
    rows = [row] * 10_000  # 20 MB
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000, use_dictionary=False)
    elif name.endswith(".csv"):
        path.write_text("text\n" + (row["text"] + "\n") * len(rows))
    else:
        line = json.dumps(row)
        array = name.endswith(".json")
        path.write_text(f"[{','.join([line] * len(rows))}]" if array else (line + "\n") * len(rows))
    pool = Pool(path)
    next(iter(pool))
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    arrow_peak = max(pa.total_allocated_bytes() for _ in pool) - before
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    assert arrow_peak < 8e6


json_values = st.text(max_size=20) | st.integers() | st.booleans() | st.none()


@given(
    rows=st.lists(
        st.dictionaries(st.text(max_size=3), st.text(max_size=20) | st.integers() | st.booleans() | st.none()),
        min_size=1,
        max_size=8,
    ),
    indent=st.none() | st.integers(0, 3),
    ascii_only=st.booleans(),
    chunk=st.integers(1, 9),
)
def test_arrays_of_any_json_are_read_as_json_reads_them(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, object]],
    indent: int | None,
    ascii_only: bool,
    chunk: int,
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    rows = [{**row, "text": "x"} for row in rows]
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK_CHARACTERS", chunk)  # the window ends inside of everything
        assert [json.loads(example.raw) for example in Pool(path, fields={"text": "text"})] == rows
