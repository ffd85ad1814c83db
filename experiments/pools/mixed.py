"""The mixed pool: instructions of four collections and hundreds of families, with held-out rows and a target."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.pools.items import VERSION, Item, read_items
from pursuit.files import sha256_file, write_json, write_text

# share of the pool's rows, by collection [ours]; where one has too few, the others give the rest
SHARES = {"natural_instructions": 0.35, "bigbench": 0.25, "evals": 0.15, "sharegpt": 0.15, "reasoning_gym": 0.10}
# held out by default: short answers that can be equal to the reference, of many kinds
FAMILIES = (
    "subtask018_mctaco_temporal_reasoning_presence",
    "subtask027_drop_answer_type_generation",
    "subtask033_winogrande_answer_generation",
    "subtask041_qasc_answer_generation",
    "subtask046_miscellaenous_question_typing",
    "subtask051_multirc_correct_answer_single_sentence",
    "date_understanding",
    "object_counting",
    "reasoning_about_colored_objects",
    "sports_understanding",
    "unit_conversion/unit_identification",
    "word_unscrambling",
)


@dataclass(frozen=True)
class Split:
    """Rows to choose from, held-out rows, and rows of the same families that say what is wanted."""

    pool: list[Item]
    heldout: list[Item]
    target: list[Item]


def make_mixed(
    out: Path, rows: int, *, eval_rows: int = 40, target_rows: int = 10, families: Sequence[str] = FAMILIES,
    seed: int = 0, max_characters: int | None = None,
) -> Path:  # fmt: skip
    """Write pool.jsonl, eval.jsonl, target.jsonl and about.json into a folder; the same bytes for the same arguments.

    Args:
        out: the folder.
        rows: of the pool.
        eval_rows: held-out rows a family.
        target_rows: rows a family of the target.
        families: that are held out and aimed at; see the field `family` of any pool for others.
        seed: of the draw.
        max_characters: of prompt and answer together, to fit small machines.

    Raises:
        SystemExit: a family does not exist or is too small, or there are not enough rows.
    """
    items = read_items()
    if max_characters:
        items = [item for item in items if len(item.prompt) + len(item.answer) <= max_characters]
    split = split_items(items, rows, eval_rows, target_rows, families, seed)
    out.mkdir(parents=True, exist_ok=True)
    files = {"pool": split.pool, "eval": split.heldout, "target": split.target}
    for name, members in files.items():
        write_text(out / f"{name}.jsonl", "".join(json.dumps(row(item), ensure_ascii=False) + "\n" for item in members))
    about = {
        "rows": {name: len(members) for name, members in files.items()},
        "collections": dict(Counter(item.collection for item in split.pool)),
        "families": len({item.family for item in split.pool}),
        "eval_families": {name: sum(item.family == name for item in split.pool) for name in families},
        "seed": seed, "max_characters": max_characters, "items_version": VERSION,
        "sha256": {name: sha256_file(out / f"{name}.jsonl") for name in files},
    }  # fmt: skip
    write_json(out / "about.json", about)
    return out


def split_items(
    items: Sequence[Item], rows: int, eval_rows: int, target_rows: int, families: Sequence[str], seed: int
) -> Split:
    """Draw held-out rows, target and pool such that no question of one stands in another.

    Raises:
        SystemExit: as for `make_mixed`.
    """
    held: dict[str, list[Item]] = {"heldout": [], "target": []}
    taken: set[str] = set()
    for family in families:
        members = _once([item for item in items if item.family == family], taken, f"{seed} {family}")
        if len(members) < eval_rows + target_rows:
            wanted = eval_rows + target_rows
            raise SystemExit(f"{family}: has {len(members):,} different questions, but {wanted:,} are to be held out.")
        held["heldout"] += members[:eval_rows]
        held["target"] += members[eval_rows : eval_rows + target_rows]
        taken |= {question_key(item) for item in members[: eval_rows + target_rows]}
    free = [item for item in items if question_key(item) not in taken]
    return Split(_draw(free, rows, seed), held["heldout"], held["target"])


def question_key(item: Item) -> str:
    """What is asked, by its letters and digits: equal where two rows ask the same in another layout."""
    return re.sub(r"\W+", " ", item.question.lower()).strip() or item.question


def row(item: Item) -> dict[str, Any]:
    """A line of a pool: `source` is the family."""
    turns = [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}]
    found: dict[str, Any] = {"messages": turns, "source": item.family, "collection": item.collection}
    if item.options and len(set(item.options)) == len(item.options) > 1 and item.answer in item.options:
        found |= {"options": list(item.options), "answer": item.options.index(item.answer)}
    if item.metadata:
        found["metadata"] = item.metadata
    return found


def _once(items: Iterable[Item], taken: set[str], seed: str) -> list[Item]:
    """In a random order, each question once, none that is taken."""
    by_question = {key: item for item in items if (key := question_key(item)) not in taken}
    members = list(by_question.values())
    random.Random(seed).shuffle(members)
    return members


def _draw(items: Sequence[Item], rows: int, seed: int) -> list[Item]:
    """Rows by the collections' shares, in a random order."""
    shuffled = list(items)
    random.Random(f"{seed} pool").shuffle(shuffled)
    by_collection: dict[str, list[Item]] = {name: [] for name in SHARES}
    for item in shuffled:
        by_collection[item.collection].append(item)
    if len(shuffled) < rows:
        raise SystemExit(f"{rows:,} rows were asked for, but there are {len(shuffled):,}; lower --rows.")
    chosen = [item for name, members in by_collection.items() for item in members[: int(rows * SHARES[name])]]
    have = set(map(id, chosen))
    rest = (item for item in shuffled if id(item) not in have)
    chosen += [item for item, _ in zip(rest, range(rows - len(chosen)), strict=False)]
    random.Random(f"{seed} order").shuffle(chosen)
    return chosen
