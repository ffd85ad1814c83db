"""`python -m experiments.optbatch.kept`: of which families a choice is, before anything is trained.

One pass over the rows in candidate batches of the study's size, in a random order, with the model to start from. The
second moment is learnt from the gradients of what is kept, as in a training, but no step is made.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from cyclopts import App

from experiments.optbatch.studies import STUDIES, Arm
from experiments.records import markdown_table
from pursuit.batches import collate
from pursuit.files import write_text

app = App(name="experiments.optbatch.kept", help=__doc__)


@app.default
def main(
    *, out: Path = Path("runs/optbatch"), results: Path = Path("experiments/results"), study: str = "textgames",
    prune: float = 0.5, arms: tuple[str, ...] = ("optbatch", "hardest"), seed: int = 0,
) -> None:  # fmt: skip
    """Print and write optbatch-STUDY-kept.md: a row a family, its mean loss, its share of candidates and of the kept.

    Args:
        out: Folder of `experiments.optbatch`, for its data.
        results: Folder for the small files that are kept.
        study: Which model.
        prune: Share of the candidates that is not kept.
        arms: Ways to choose.
        seed: Of the order and of the choice.
    """
    found = STUDIES[study](out / study)
    rows, _ = found.rows(out / study)
    lines = found.pool.read_text(encoding="utf-8").splitlines()
    families = [json.loads(lines[row])["source"] for row in rows.rows["row"].to_pylist()]
    order = np.random.default_rng(seed).permutation(len(rows))
    model, size = found.first_model(seed), found.recipe.batch_size
    losses: dict[str, list[float]] = defaultdict(list)
    kept: dict[str, Counter[str]] = {name: Counter() for name in arms}
    for name in arms:
        selector = Arm(name, prune).selector(seed)
        for start in range(0, len(order), size):
            places = order[start : start + size]
            batch = collate(rows, places.tolist())
            keep = selector(model, batch)
            model(**collate(rows, places[keep.numpy()].tolist())).loss.backward()
            selector.observe(model)
            model.zero_grad()
            kept[name].update(families[place] for place in places[keep.numpy()])
            if name == arms[0] and selector.last is not None and selector.last.losses is not None:
                for place, loss in zip(places, selector.last.losses, strict=True):
                    losses[families[place]].append(float(loss))
    table = [["", "loss", "share of candidates", *(f"of {name}'s" for name in arms)]]
    for family in sorted(losses, key=lambda family: np.mean(losses[family])):
        shares = [kept[name][family] / kept[name].total() for name in arms]
        table.append([
            family, f"{np.mean(losses[family]):.2f}", f"{len(losses[family]) / len(rows):.0%}",
            *(f"{share:.0%}" for share in shares),
        ])  # fmt: skip
    title = f"# What is kept at prune {prune:g}, before any training: {study}"
    text = f"{title}\n\nSeed {seed}, of the order and of the choice.\n\n{markdown_table(table)}\n"
    write_text(results / f"optbatch-{study}-kept.md", text)
    print(text)


if __name__ == "__main__":
    app()
