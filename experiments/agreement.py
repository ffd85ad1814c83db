"""`python -m experiments.agreement RUN…`: how much of a selection stays with fewer numbers or bits a row.

No training: everything is taken from the gradients that stand in run folders. A smaller projection is made by adding up
the stored numbers with random signs in groups, d/d' of them in each: a count sketch of the count sketch that is stored.
Another seed is another grouping, so seeds differ in this second step only; what they agree on at half of the stored
numbers and above says little about another projection of the gradients themselves, and is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cyclopts import App

from experiments.records import Record, machine, markdown_table
from pursuit import Features, Run
from pursuit.compare.plan import parse_method
from pursuit.files import write_json, write_text
from pursuit.progress import say
from pursuit.selectors import Selector, method, parse_budget
from pursuit.store.codecs import decode, encode
from pursuit.versions import versions

app = App(name="experiments.agreement", help=__doc__)
METHODS = ("tagcos(clusters=10)", "gtp", "less", "gtp(in_domain=true)", "kcenter", "craig")
DIMENSIONS, SEEDS, BUDGET = (64, 256, 1024, 2048), 3, "5%"
Rows = np.ndarray
Change = Callable[[Rows], Rows]  # (N, d) unit rows of one checkpoint to others


@app.default
def main(*runs: Path, results: Path = Path("experiments/results")) -> None:
    """Select from every variant of each run's gradients; write agreement.json and agreement.md.

    Args:
        runs: Run folders whose gradients stand, with a target.
        results: Folder for the small files that are kept.
    """
    warnings.simplefilter("ignore")  # the methods' warnings about this pool have been given where it was selected from
    found = [_of_run(path) for path in runs]
    record = {"machine": machine(), "versions": versions(), "budget": BUDGET, "seeds": SEEDS, "runs": found}
    results.mkdir(parents=True, exist_ok=True)
    write_json(results / "agreement.json", record)
    text = _page(record)
    write_text(results / "agreement.md", text)
    print(text)


def folded(dimension: int, seed: int) -> Change:
    """Add up groups of coordinates with random signs, and scale the rows to unit length again."""

    def change(rows: Rows) -> Rows:
        stored = rows.shape[1]
        if stored % dimension:
            raise SystemExit(f"{dimension}: does not divide the {stored:,} numbers that are stored.")
        random = np.random.default_rng([seed, dimension])
        mixed = rows[:, random.permutation(stored)] * random.choice((-1.0, 1.0), stored).astype(np.float32)
        return mixed.reshape(len(rows), dimension, -1).sum(2)

    return change


def stored_as(dtype: str) -> Change:
    """What is read from a store of that type."""

    def change(rows: Rows) -> Rows:
        coded = encode(torch.from_numpy(rows), dtype)
        read = np.empty_like(rows)
        decode(coded["features"], coded.get("scales"), read)
        return read

    return change


def _of_run(path: Path) -> dict[str, Any]:
    run = Run(path)
    say(f"{path}: reading")
    pool = _matrices(run.extract())
    stored = pool[0].shape[1]
    methods = {}
    for text in METHODS:
        name, parameters = parse_method(text)
        say(f"{path}: {text}")
        methods[text] = _of_method(_Chooser(run, method(name, **parameters), pool), stored)
    return {
        "run": f"{path.parent.name}/{path.name}", "rows": len(pool[0]), "checkpoints": len(pool), "stored": stored,
        "methods": methods, "cosines": cosines(run.extract()),
    }  # fmt: skip


def cosines(features: Features) -> dict[str, float]:
    """Mean cosine of pairs of rows, of the same source and of others, in TAGCOS' feature."""
    rows = np.asarray(features.average()[np.arange(features.num_rows)], np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sources = np.array(features.rows["source"].to_pylist())
    pairs = np.triu_indices(len(rows), 1)
    same, found = (sources[:, None] == sources)[pairs], (rows @ rows.T)[pairs]
    return {"same source": float(found[same].mean()), "other sources": float(found[~same].mean())}


class _Chooser:
    """One method on changed gradients of one run; its own seed is always 0."""

    def __init__(self, run: Run, selector: Selector, pool: Sequence[Rows]) -> None:
        self.selector, self.pool = selector, pool
        self.about = (run.extract(), run.target_features(follows=selector.follows_target))
        self.target = _matrices(self.about[1])

    def __call__(self, change: Change | None = None, checkpoints: slice = slice(None), seed: int = 0) -> set[int]:
        """The rows that are chosen."""
        pool, target = (
            self._changed(rows[checkpoints], about, about.weights[checkpoints], change)
            for rows, about in zip((self.pool, self.target), self.about, strict=True)
        )
        budget = parse_budget(BUDGET, pool.num_rows)
        uses = self.selector.needs_target or self.selector.uses_target
        return set(self.selector.select(pool, budget, target=target if uses else None, seed=seed).indices.tolist())

    @staticmethod
    def _changed(matrices: Sequence[Rows], about: Features, weights: np.ndarray, change: Change | None) -> Features:
        array = np.stack([rows if change is None else change(rows) for rows in matrices], axis=1)
        changed = Features.from_array(array, weights=weights.tolist())
        changed.rows = about.rows
        return changed


def _of_method(choose: _Chooser, stored: int) -> dict[str, Any]:
    whole = choose()

    def kept(other: set[int]) -> float:
        return len(whole & other) / len(whole)

    found: dict[str, Any] = {"rows": len(whole), "another seed of the method": kept(choose(seed=1))}
    for dimension in (d for d in DIMENSIONS if d <= stored // 4):
        chosen = [choose(folded(dimension, seed)) for seed in range(SEEDS)]
        found[f"d={dimension}"] = {
            "kept": [kept(one) for one in chosen],
            "between_seeds": [len(a & b) / len(a) for a, b in combinations(chosen, 2)],
        }
    found |= {dtype: kept(choose(stored_as(dtype))) for dtype in ("float16", "int8", "bits")}
    for number in range(len(choose.pool)):
        found[f"checkpoint {number + 1} alone"] = kept(choose(checkpoints=slice(number, number + 1)))
    return found


def _matrices(features: Features) -> list[Rows]:
    return [np.asarray(features.checkpoint(t)[np.arange(features.num_rows)], np.float32)
            for t in range(features.num_checkpoints)]  # fmt: skip


def _page(record: Record) -> str:
    parts = [
        "# Agreement of selections",
        "Made by `python -m experiments.agreement` from the gradients of the other experiments; all numbers are in "
        f"`agreement.json`. Budget {record['budget']}. Shares of the rows chosen from all stored numbers that are "
        "chosen again, in brackets what two seeds of the smaller projection have in common (means of three).",
    ]
    chance = float(record["budget"].rstrip("%")) / 100
    for run in record["runs"]:
        names = list(next(iter(run["methods"].values())))[1:]
        lines = [["", *names]]
        lines += [[text, *(_share(found[name]) for name in names)] for text, found in run["methods"].items()]
        about = f"{run['rows']:,} rows, {run['checkpoints']} checkpoints, {run['stored']:,} numbers stored."
        means = ", ".join(f"{value:.2f} {name}" for name, value in run["cosines"].items())
        about += f" Mean cosine of two rows: {means}"
        parts += [f"## {run['run']}", f"{about}. By chance: {chance:.0%}.", markdown_table(lines)]
    return "\n\n".join(parts) + "\n"


def _share(value: Any) -> str:
    if isinstance(value, dict):
        return f"{np.mean(value['kept']):.0%} ({np.mean(value['between_seeds']):.0%})"
    return f"{value:.0%}"


if __name__ == "__main__":
    app()
