"""Rows of the pool that stand in the target are found, with the row that they equal."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pursuit.encoding import Encoder, encode_pool
from pursuit.pool import Pool
from pursuit.run.leaks import find_leaks, leak_messages
from tiny import tiny_tokenizer

HASHES = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz") | st.none()), max_size=12)


def table(rows: list[tuple[str, str | None]]) -> pa.Table:
    texts, prompts = [text for text, _ in rows], [prompt for _, prompt in rows]
    return pa.table({"text_hash": pa.array(texts, pa.string()), "prompt_hash": pa.array(prompts, pa.string())})


@given(HASHES, HASHES)
def test_each_row_gets_the_first_target_row_of_the_same_text_or_prompt(rows, target):
    leaks = find_leaks(table(rows), table(target))
    for column, partners in ((0, leaks.text), (1, leaks.prompt)):
        expected = [
            next((number for number, other in enumerate(target) if other[column] == row[column] is not None), -1)
            for row in rows
        ]
        assert partners.tolist() == expected
    assert leaks.leaked.tolist() == [max(pair) >= 0 for pair in zip(leaks.text, leaks.prompt, strict=True)]
    assert all(a in (b, c) for a, b, c in zip(leaks.partner, leaks.text, leaks.prompt, strict=True))


def test_tables_of_several_chunks_are_compared_as_one():
    rows = pa.concat_tables([table([("a", None)]), table([("b", "x")])])
    target = pa.concat_tables([table([("c", None)]), table([("b", None), ("d", "x")])])
    leaks = find_leaks(rows, target)
    assert leaks.text.tolist() == [-1, 1]
    assert leaks.prompt.tolist() == [-1, 2]


def test_rows_of_real_files_are_found_whatever_their_format_and_white_space(tmp_path):
    encoder = Encoder(tiny_tokenizer())
    (tmp_path / "pool.jsonl").write_text(
        json.dumps({"prompt": "the sea", "response": "is deep"}) + "\n"
        + json.dumps({"messages": [{"role": "user", "content": "the  wind"},
                                   {"role": "assistant", "content": "is  cold"}]}) + "\n"
        + json.dumps({"prompt": "the wind", "response": "is warm"}) + "\n"
        + json.dumps({"text": "the wind is cold"}) + "\n"
    )  # fmt: skip
    (tmp_path / "exam.jsonl").write_text(json.dumps({"prompt": "the wind", "response": "is cold"}) + "\n")
    rows = encode_pool(Pool(tmp_path / "pool.jsonl"), encoder, tmp_path / "pool").rows
    target = encode_pool(Pool([f"exam={tmp_path / 'exam.jsonl'}"]), encoder, tmp_path / "exam").rows
    leaks = find_leaks(rows, target)
    assert leaks.text.tolist() == [-1, 0, -1, -1]
    assert np.flatnonzero(leaks.leaked).tolist() == [1, 2]
    (message,) = leak_messages(leaks, rows, target)
    assert message == (
        "2 of 4 rows of the pool stand in the target set exam (1 of them only with their prompt), e.g. "
        f"{tmp_path / 'pool.jsonl'}:2; a score on it would flatter; --drop-leaks leaves them out."
    )
    assert not list(leak_messages(leaks.among(np.array([True, False, False, True])), rows, target))


def test_rows_without_a_line_are_named_by_their_number():
    rows = table([("a", None), ("b", None)]).append_column("path", [["d", "d"]]).append_column("line", [[None, None]])
    target = table([("b", None)]).append_column("source", [["exam"]])
    (message,) = leak_messages(find_leaks(rows, target), rows, target, dropped=True)
    assert message == "1 of 2 rows of the pool stands in the target set exam, e.g. row 1; they are left out."
