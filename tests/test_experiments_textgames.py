"""The text-game experiment: what is planted in its pool is what its tables say is there."""

from __future__ import annotations

import numpy as np
import pytest
from experiments.textgames.data import Sizes, planted

SIZES, KINDS = Sizes(clean=20, wrong=6, copies=5), ("coin", "twc")


def steps(count: int) -> list[dict]:
    return [
        {"messages": [_turn("user", f"step {number}"), _turn("assistant", f"do {number}")], "source": KINDS[number % 2]}
        for number in range(count)
    ]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def text(row: dict) -> tuple[str, str]:
    return row["messages"][0]["content"], row["messages"][1]["content"]


@pytest.mark.parametrize("seed", range(3))
def test_copies_repeat_clean_rows_and_wrong_rows_have_another_action_of_their_kind(seed):
    rows = steps(30)
    right = {text(row)[0]: text(row)[1] for row in rows}
    kinds = {text(row)[1]: row["source"] for row in rows}
    pool = planted(rows, SIZES, np.random.default_rng(seed))
    clean, wrong, copies = ([row for row in pool if row["planted"] == name] for name in ("", "wrong", "copy"))
    assert (len(clean), len(wrong), len(copies)) == (20, 6, 5)
    assert len({text(row) for row in clean}) == 20
    assert {text(row) for row in copies} < {text(row) for row in clean}
    for row in wrong:
        question, answer = text(row)
        assert answer != right[question]
        assert kinds[answer] == row["source"]
        assert question not in {text(other)[0] for other in clean}
    assert [text(row) for row in planted(rows, SIZES, np.random.default_rng(seed))] == [text(row) for row in pool]


def test_too_few_steps_are_refused():
    with pytest.raises(SystemExit, match="too few"):
        planted(steps(25), SIZES, np.random.default_rng(0))
