"""The encoded pool: what it holds, that it resumes to the same bytes, and that damage is found."""

from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pursuit.encoding import EncodedPool, Encoder, duplicate_groups, encode_pool
from pursuit.encoding import build as encode_build
from pursuit.errors import DataError, ModelError, StoreError
from pursuit.pool import Pool, Refusal
from pursuit.run.leaks import find_leaks
from tiny import CHATML, tiny_tokenizer

MAX_LENGTH = 48


def write_rows(path: Path, count: int = 40) -> Path:
    """Every 7th row is malformed, every 11th has a prompt too long for its response to be kept."""
    lines = []
    for number in range(count):
        row = {"prompt": "x" * 200 if number % 11 == 5 else f"What is {number}?", "response": f"It is {number}."}
        lines.append("{" if number % 7 == 6 else json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(write_rows(tmp_path / "rows.jsonl"), on_bad_row="skip")


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(tiny_tokenizer(), max_length=MAX_LENGTH)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_store_holds_the_tokens_and_rows_of_every_usable_example(
    tmp_path: Path, pool: Pool, encoder: Encoder
) -> None:
    store = encode_pool(pool, encoder, tmp_path / "tokens", shard_rows=10)
    usable = [example for example in pool if example.row % 11 != 5]
    assert len(store) == len(usable) == store.rows.num_rows == store.manifest["count"]
    assert len(store.manifest["shards"]) == 4
    for index, (example, row) in enumerate(zip(usable, store.rows.to_pylist(), strict=True)):
        encoded = encoder.encode(example)
        input_ids, response = store[index]
        assert input_ids.tolist() == encoded.input_ids.tolist()
        assert response.tolist() == encoded.response.tolist()
        assert (input_ids.dtype, response.dtype) == (np.int32, np.bool_)
        assert row == {
            "index": index, "row": example.row, "path": example.path, "line": example.line, "source": "rows",
            "length": len(input_ids), "response_length": int(response.sum()), "full_length": encoded.full_length,
            "truncated": False, "straddling": 0, "text_hash": encoded.text_hash, "prompt_hash": encoded.prompt_hash,
        }  # fmt: skip
    assert store.lengths.dtype == store.response_lengths.dtype == np.int32
    assert store.manifest["tokens"] == store.lengths.sum()
    assert store.manifest["response_tokens"] == store.response_lengths.sum()
    assert store[-1][0].tolist() == store[len(store) - 1][0].tolist()
    with pytest.raises(IndexError):
        store[len(store)]


def test_rows_refused_by_the_pool_and_by_the_encoder_are_listed_in_order(
    tmp_path: Path, pool: Pool, encoder: Encoder
) -> None:
    store = encode_pool(pool, encoder, tmp_path / "tokens", shard_rows=10)
    bad = [number for number in range(40) if number % 7 == 6 or number % 11 == 5]
    assert [(refusal.row, refusal.line) for refusal in store.refused] == [(number, number + 1) for number in bad]
    assert all(isinstance(refusal, Refusal) for refusal in store.refused)
    assert "its response is cut off" in store.refused[0].reason
    assert "malformed JSON" in store.refused[1].reason
    assert store.manifest["refused"] == len(bad)


def test_the_first_bad_row_is_the_error_whoever_finds_it(tmp_path: Path, encoder: Encoder) -> None:
    path = write_rows(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="line 6: its response is cut off"):
        encode_pool(Pool(path), encoder, tmp_path / "tokens")
    with pytest.raises(DataError, match="line 7: malformed JSON"):
        encode_pool(Pool(path), Encoder(tiny_tokenizer()), tmp_path / "tokens")
    assert len(encode_pool(Pool(path, on_bad_row="skip"), encoder, tmp_path / "tokens")) > 0


def test_nothing_usable_is_an_error_and_a_missing_template_is_not_skipped(tmp_path: Path, encoder: Encoder) -> None:
    (tmp_path / "rows.jsonl").write_text("{\n" + json.dumps({"prompt": "x" * 200, "response": "y"}) + "\n")
    pool = Pool(tmp_path / "rows.jsonl", on_bad_row="skip")
    with pytest.raises(DataError, match=r"no usable row: 2 were refused, the first \(.*line 1\): malformed"):
        encode_pool(pool, encoder, tmp_path / "tokens")
    with pytest.raises(ModelError, match="no chat template"):
        encode_pool(pool, Encoder(tiny_tokenizer(None)), tmp_path / "other")
    with pytest.raises(StoreError, match="holds no finished encoding"):
        EncodedPool(tmp_path / "tokens")


@pytest.mark.parametrize("shard_rows", [1, 10, 15, 31, 1000])
def test_shards_hold_as_many_rows_as_asked_whatever_batches_they_came_in(
    tmp_path: Path, pool: Pool, encoder: Encoder, shard_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_build, "BATCH_ROWS", 7)
    store = encode_pool(pool, encoder, tmp_path / "tokens", shard_rows=shard_rows)
    monkeypatch.undo()
    encode_pool(pool, encoder, tmp_path / "again", shard_rows=shard_rows)
    assert contents(tmp_path / "tokens") == contents(tmp_path / "again")
    counts = [shard["count"] for shard in store.manifest["shards"]]
    assert all(count == shard_rows for count in counts[:-1])
    assert 0 < counts[-1] <= shard_rows


def test_stopped_after_any_file_it_resumes_to_the_same_bytes(tmp_path: Path, pool: Pool, encoder: Encoder) -> None:
    encode_pool(pool, encoder, tmp_path / "whole", shard_rows=10)
    written = sorted((tmp_path / "whole").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert written[0].name == "encoding.json"
    assert written[-1].name == "manifest.json"
    for count in range(len(written)):
        folder = tmp_path / f"stopped-{count}"
        folder.mkdir()
        for path in written[:count]:
            shutil.copy(path, folder)
        (folder / f"{written[count].name}.partial").write_bytes(written[count].read_bytes()[:50])
        encode_pool(pool, encoder, folder, shard_rows=10)
        (folder / f"{written[count].name}.partial").unlink(missing_ok=True)
        assert contents(folder) == contents(tmp_path / "whole")


def test_whole_shards_are_not_tokenised_again(tmp_path: Path, pool: Pool, encoder: Encoder) -> None:
    encode_pool(pool, encoder, tmp_path / "tokens", shard_rows=10)
    (tmp_path / "tokens" / "manifest.json").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tokens").glob("0*.safetensors")}
    (tmp_path / "tokens" / "shard-00002.json").unlink()
    encode_pool(pool, encoder, tmp_path / "tokens", shard_rows=10)
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "tokens").glob("0*.safetensors")}
    assert {name for name in now if now[name] != kept[name]} == {"00002.safetensors"}


KILLED_RUN = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from tiny import tiny_tokenizer
from pursuit.encoding import Encoder, encode_pool
from pursuit.pool import Pool
pool = Pool({rows!r}, on_bad_row="skip")
encode_pool(pool, Encoder(tiny_tokenizer(), max_length={max_length}), {folder!r}, shard_rows=100)
"""


def test_killed_with_sigkill_it_resumes_to_the_same_bytes(tmp_path: Path, encoder: Encoder) -> None:
    rows, folder = write_rows(tmp_path / "rows.jsonl", 6000), tmp_path / "killed"
    script = KILLED_RUN.format(
        tests=str(Path(__file__).parent), rows=str(rows), folder=str(folder), max_length=MAX_LENGTH
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    while not (folder / "shard-00003.json").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert not (folder / "manifest.json").exists()
    pool = Pool(rows, on_bad_row="skip")
    encode_pool(pool, encoder, folder, shard_rows=100)
    encode_pool(pool, encoder, tmp_path / "whole", shard_rows=100)
    found = {name: data for name, data in contents(folder).items() if not name.endswith(".partial")}
    assert found == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["00001.safetensors", "rows-00001.parquet"])
def test_a_damaged_shard_is_never_used_and_made_anew_alone(
    tmp_path: Path, pool: Pool, encoder: Encoder, name: str
) -> None:
    folder = tmp_path / "tokens"
    encode_pool(pool, encoder, folder, shard_rows=10)
    whole = contents(folder)
    for damage in (lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], lambda data: data[:100], None):
        if damage is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(damage(whole[name]))
        with pytest.raises(StoreError, match=rf"{name}: (is damaged|missing)"):
            EncodedPool(folder).verify()
        repaired = encode_pool(pool, encoder, folder, shard_rows=10)
        repaired.verify()
        assert contents(folder) == whole


def test_a_finished_store_of_something_else_is_refused_and_the_difference_named(
    tmp_path: Path, pool: Pool, encoder: Encoder
) -> None:
    folder = tmp_path / "tokens"
    encode_pool(pool, encoder, folder, fingerprint={"model": "a"})
    with pytest.raises(StoreError, match=r"made from something else: max_length was 48, is now 50\. Choose"):
        encode_pool(pool, Encoder(tiny_tokenizer(), max_length=50), folder, fingerprint={"model": "a"})
    with pytest.raises(StoreError, match="model was 'a', is now 'b'"):
        encode_pool(pool, encoder, folder, fingerprint={"model": "b"})
    write_rows(tmp_path / "rows.jsonl", 41)
    with pytest.raises(StoreError, match="files or how they are read have changed"):
        encode_pool(Pool(tmp_path / "rows.jsonl"), encoder, folder, fingerprint={"model": "a"})


def test_an_unfinished_store_of_something_else_is_started_over(tmp_path: Path, pool: Pool, encoder: Encoder) -> None:
    folder = tmp_path / "tokens"
    encode_pool(pool, Encoder(tiny_tokenizer(), max_length=40), folder, shard_rows=10)
    (folder / "manifest.json").unlink()
    (folder / "theirs.txt").write_text("not ours to delete")
    encode_pool(pool, encoder, folder, shard_rows=10)
    (folder / "theirs.txt").unlink()
    encode_pool(pool, encoder, tmp_path / "whole", shard_rows=10)
    assert contents(folder) == contents(tmp_path / "whole")


def test_rows_that_were_skipped_are_errors_when_they_are_to_be(tmp_path: Path, pool: Pool, encoder: Encoder) -> None:
    skipped = encode_pool(pool, encoder, tmp_path / "store").refused[0]
    strict = Pool(tmp_path / "rows.jsonl")
    with pytest.raises(DataError) as error:
        encode_pool(strict, encoder, tmp_path / "store")
    with pytest.raises(DataError) as anew:
        encode_pool(strict, encoder, tmp_path / "other")
    assert str(error.value) == str(anew.value)
    assert skipped.reason in str(error.value)


def test_a_store_travels_to_worker_processes(tmp_path: Path, pool: Pool, encoder: Encoder) -> None:
    store = encode_pool(pool, encoder, tmp_path / "tokens", shard_rows=10)
    first = store[0][0].tolist()
    assert pickle.loads(pickle.dumps(store))[0][0].tolist() == first


def test_text_and_chat_rows_of_several_files_share_a_store(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "The capital of France"}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "What is 12?", "response": "12", "source": "sums"}\n')
    pool = Pool([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    store = encode_pool(pool, Encoder(tiny_tokenizer(CHATML)), tmp_path / "tokens")
    assert store.rows["source"].to_pylist() == ["a", "sums"]
    assert store.rows["path"].to_pylist() == [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    assert store.rows["prompt_hash"].to_pylist()[0] is None


def test_duplicates_are_grouped_and_leaks_from_the_target_found(tmp_path: Path, encoder: Encoder) -> None:
    def encoded(name: str, pairs: list[tuple[str, str]]) -> pa.Table:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"prompt": ask, "answer": reply}) + "\n" for ask, reply in pairs))
        return encode_pool(Pool(path), encoder, tmp_path / name).rows

    pool_rows = encoded("pool", [("a", "1"), ("b", "2"), ("c", "3"), ("b", " 2"), ("a", "1"), ("a", "1")])
    target_rows = encoded("target", [("b", "2"), ("c", "4")])
    assert [group.tolist() for group in duplicate_groups(pool_rows)] == [[0, 4, 5], [1, 3]]
    leaks = find_leaks(pool_rows, target_rows)
    assert np.flatnonzero(leaks.text >= 0).tolist() == [1, 3]
    assert np.flatnonzero(leaks.prompt >= 0).tolist() == [1, 2, 3]
    assert leaks.partner.tolist() == [-1, 0, 1, 0, -1, -1]
    assert duplicate_groups(target_rows) == []
