"""What chosen rows of a mixed pool are: of which collections and families, and how long their answers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from experiments.records import markdown_table
from pursuit import Run
from pursuit.compare.choices import Choices

WRONG = re.compile(r"subtask0(05|08|11|14|17|25|42|55)_")  # of Natural Instructions
Row = Mapping[str, Any]


def composition(rows: Sequence[Row], aimed: Collection[str]) -> dict[str, Any]:
    """Facts of some rows; `aimed`: the held-out families."""
    found = [row["source"] for row in rows]
    return {
        "rows": len(rows), "asked_for_wrong_answers": sum(bool(WRONG.match(source)) for source in found) / len(rows),
        "of_held_out_families": sum(source in aimed for source in found) / len(rows),
        "held_out_families": len(set(found) & set(aimed)), "families": len(set(found)),
        "collections": dict(sorted(Counter(row["collection"] for row in rows).items())),
        "answer_characters": sum(len(row["messages"][1]["content"]) for row in rows) / len(rows),
    }  # fmt: skip


def compared_choices(run: Run, made: Choices, aimed: Collection[str]) -> list[dict[str, Any]]:
    """Of the pool and of every choice of a comparison."""
    pool = {example.row: json.loads(example.raw) for example in run.pool}
    usable = [pool[row] for row in run.encode().rows["row"].to_pylist()]
    facts = [{"name": "pool", **composition(usable, aimed)}]
    for (method, _, seed), (selection, _) in made.items():
        chosen = [usable[index] for index in selection.indices]
        facts.append({"name": f"{method}, seed {seed}", **composition(chosen, aimed)})
    return facts


def shared_rows(lists: Mapping[str, Choices], method: str) -> dict[str, dict[str, float]]:
    """label → label → share of one's rows that are among the other's, of the first budget and seed."""
    chosen = {
        label: next(set(choice.indices.tolist()) for (name, _, _), (choice, _) in made.items() if name == method)
        for label, made in lists.items()
    }
    return {a: {b: len(ours & theirs) / len(ours) for b, theirs in chosen.items()} for a, ours in chosen.items()}


def composition_table(facts: Sequence[Mapping[str, Any]]) -> str:
    """A row a selection."""
    collections = list(facts[0]["collections"])
    head = ["", "rows", "of held-out families", "of how many of them", "families", "wrong answers asked for"]
    head += ["answer, characters", *collections]
    lines = [
        [
            fact["name"], f"{fact['rows']:,}", f"{fact['of_held_out_families']:.0%}", str(fact["held_out_families"]),
            str(fact["families"]), f"{fact['asked_for_wrong_answers']:.0%}", f"{fact['answer_characters']:.0f}",
            *(f"{fact['collections'].get(name, 0) / fact['rows']:.0%}" for name in collections),
        ]
        for fact in facts
    ]  # fmt: skip
    return markdown_table([head, *lines])
