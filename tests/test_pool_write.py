"""A subset holds the chosen rows untouched, in the chosen order."""

from __future__ import annotations

import datetime
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pursuit.errors import DataError, SettingsError
from pursuit.pool import Pool, check_table, write_subset

LINES = [f'{{"text":  "row {number}", "n": {number}.0}}'.encode() for number in range(50)]
ORDER = [41, 3, 17, 0, 3, 49]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join(LINES[:20]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(LINES[20:])))
    return Pool([tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"])


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"])
def test_json_lines_hold_the_rows_bytes_in_order(tmp_path: Path, pool: Pool, name: str) -> None:
    path = write_subset(pool, np.array(ORDER), tmp_path / "new" / name)
    packed = path.read_bytes()
    unpack = {"out.jsonl": bytes, "out.jsonl.gz": gzip.decompress}.get(
        name, lambda data: zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
    )
    assert unpack(packed) == b"".join(LINES[row] + b"\n" for row in ORDER)
    write_subset(pool, ORDER, path)
    assert path.read_bytes() == packed
    assert [file.name for file in path.parent.iterdir()] == [name]


def test_a_subset_can_be_read_as_a_pool_again(tmp_path: Path, pool: Pool) -> None:
    path = write_subset(pool, ORDER, tmp_path / "out.jsonl")
    assert [example.raw for example in Pool(path)] == [LINES[row] for row in ORDER]


def test_parquet_keeps_column_types_and_order(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": [f"row {number}" for number in range(600)],
            "day": pa.array([datetime.date(2024, 1, 1)] * 600, pa.date32()),
            "small": pa.array(range(600), pa.int16()),
            "chat": pa.array([[{"role": "user"}]] * 600, pa.list_(pa.struct([("role", pa.string())]))),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    pool = Pool(tmp_path / "a.parquet")
    order = [599, 0, 256, 255]
    written = pq.read_table(write_subset(pool, order, tmp_path / "out.parquet"))
    assert written.equals(table.take(order))
    lines = write_subset(pool, order, tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["small"] for line in lines] == order


def test_json_rows_with_different_fields_become_one_table(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": "b", "n": 1}\n')
    written = pq.read_table(write_subset(Pool(tmp_path / "a.jsonl"), [1, 0], tmp_path / "out.parquet"))
    assert written.to_pylist() == [{"text": "b", "n": 1}, {"text": "a", "n": None}]


def test_a_column_that_a_source_lacks_is_null_there(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    pool = Pool([tmp_path / "a.parquet", tmp_path / "b.jsonl"])
    check_table(pool, tmp_path / "out.parquet")
    written = pq.read_table(write_subset(pool, [1, 0], tmp_path / "out.parquet"))
    assert written.to_pylist() == [{"text": "b", "n": None}, {"text": "a", "n": 1}]


def test_columns_of_one_name_and_two_types_cannot_become_one_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "b", "n": "one"}\n')
    pool = Pool([tmp_path / "a.parquet", tmp_path / "b.jsonl"])
    said = r"b\.jsonl has \(text: string, n: string\), which does not go with .*a\.parquet \(text: string, n: int64\)"
    with pytest.raises(DataError, match=said):
        check_table(pool, tmp_path / "out.parquet")
    with pytest.raises(DataError, match=said):
        write_subset(pool, [0, 1], tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out*"))
    check_table(pool, tmp_path / "out.jsonl")
    check_table(pool, tmp_path / "out.parquet", without=["b"])
    write_subset(pool, [0, 1], tmp_path / "out.jsonl")


def test_rows_whose_types_do_not_agree_cannot_become_one_table(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}\n{"text": "b", "n": "one"}\n')
    with pytest.raises(DataError, match=r"do not fit into one table .* Write \.jsonl instead"):
        write_subset(Pool(tmp_path / "a.jsonl"), [0, 1], tmp_path / "out.parquet")


@pytest.mark.parametrize(("value", "why"), [("one", "Could not convert 'one'"), (2**70, "too large"), ([1], "list")])
def test_the_column_and_the_first_row_that_does_not_fit_are_named(tmp_path: Path, value: Any, why: str) -> None:
    numbers = [None, 1, 2.5, 3, value, 4, value]
    rows = [{"text": "a", "n": number, "after": "b"} for number in numbers]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    pool = Pool(tmp_path / "a.jsonl")
    said = rf"a\.jsonl, line 9: its rows do not fit into one table from this one on, by the column 'n' .*{why}"
    with pytest.raises(DataError, match=said):
        check_table(pool, tmp_path / "out.parquet")
    with pytest.raises(DataError, match=said):
        write_subset(pool, [6, 4, 2, 1, 0], tmp_path / "out.parquet")
    write_subset(pool, [0, 1, 2, 3, 5], tmp_path / "out.parquet")


def test_wrong_names_rows_and_nothing_at_all_are_errors(tmp_path: Path, pool: Pool) -> None:
    with pytest.raises(SettingsError, match=r"out\.csv: a subset is written as \.jsonl"):
        write_subset(pool, [0], tmp_path / "out.csv")
    with pytest.raises(DataError, match="row 50 was asked for, but the pool has 50 rows"):
        write_subset(pool, [0, 50], tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="no rows were chosen"):
        write_subset(pool, [], tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
