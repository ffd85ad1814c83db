"""The script that a text is written in: a cheap, honest stand-in for its language [ours]."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache

from pursuit.overview.texts import response_of
from pursuit.report import Segments

READ = 2_000  # characters of a text that are looked at
MAJORITY = 0.7  # share of the letters from which a text counts as written in one script
NAMES = {
    "CJK": "Han", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "BOPOMOFO": "Han",
    "FULLWIDTH": "Latin", "HALFWIDTH": "Japanese", "KANGXI": "Han", "IDEOGRAPHIC": "Han",
}  # fmt: skip
CODE = re.compile(
    r"^\s*(?:def |class |import |from \w+ import |return\b|#include|public |private |func |function |const |let |var "
    r"|SELECT |INSERT |CREATE |</?[a-z][\w-]*[ >]|```|\}|@\w+)|[;{]\s*$|\w\(.*\)[;:]?\s*$|^\s*\w+ = ",
    re.MULTILINE,
)
CODE_LINES = 0.4  # share of the lines


def script_of(text: str) -> str:
    """The script of most letters of a text: "Latin", "Cyrillic", "Han", …, "code-like", "mixed" or "no letters".

    Japanese is told from Han by its kana. "code-like" are texts in Latin letters of whose lines many look like a
    programming language; both limits are ours.
    """
    text = text[:READ]
    counts = Counter(_script(character) for character in text if character.isalpha())
    letters = counts.total()
    if not letters:
        return "no letters"
    if counts["Japanese"] >= 0.1 * letters and counts["Japanese"] + counts["Han"] >= MAJORITY * letters:
        return "Japanese"
    name, most = min(counts.items(), key=lambda item: (-item[1], item[0]))
    if most < MAJORITY * letters:
        return "mixed"
    return "code-like" if name == "Latin" and _code_like(text) else name


def _code_like(text: str) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    marked = sum(CODE.search(line) is not None for line in lines)
    return len(lines) > 1 and marked >= CODE_LINES * len(lines)


@cache
def _script(character: str) -> str:
    first = unicodedata.name(character, "OTHER").split()[0].split("-")[0]
    return NAMES.get(first, first.capitalize())


def script_counts(
    segments: Callable[[int], Segments], pool: Iterable[int], chosen: Iterable[int]
) -> list[tuple[str, int, int]]:
    """(script, rows of `pool`, rows of `chosen`) of the responses, the most frequent in the pool first."""
    known: dict[int, str] = {}

    def count(rows: Iterable[int]) -> Counter[str]:
        for row in rows:
            if row not in known:
                known[row] = script_of(response_of(segments(row)))
        return Counter(known[row] for row in rows)

    in_pool, picked = count(list(pool)), count(list(chosen))
    names = sorted(in_pool | picked, key=lambda name: (-in_pool[name], -picked[name], name))
    return [(name, in_pool[name], picked[name]) for name in names]
