"""The table beside a subset: each subset has its own, and another's is not taken for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pursuit.errors import DataError
from pursuit.export.subset import beside, publish, read_chosen
from pursuit.selectors import Selection
from pursuit.store.features import Features


@pytest.mark.parametrize(
    ("subset", "table"),
    [
        ("a.jsonl", "a.chosen.parquet"), ("a.jsonl.gz", "a.chosen.parquet"), ("a.jsonl.zst", "a.chosen.parquet"),
        ("a.parquet", "a.chosen.parquet"), ("less-0.5.jsonl", "less-0.5.chosen.parquet"),
        ("a.seed1.jsonl", "a.seed1.chosen.parquet"), ("a.b.csv", "a.b.chosen.parquet"),
        ("plain", "plain.chosen.parquet"),
    ],
)  # fmt: skip
def test_its_name_is_the_subsets_without_the_ending_of_its_kind(subset: str, table: str) -> None:
    assert beside(Path("x") / subset, "chosen.parquet") == Path("x") / table


def published(folder: Path, name: str, *indices: int, weight: float) -> Path:
    features = Features.from_array(np.random.default_rng(0).normal(size=(9, 4)))
    selection = Selection(np.array(indices), np.full(len(indices), weight), "made here", 9)
    return publish(selection, features, None, folder / name, settings={}).subset


def test_subsets_whose_names_begin_alike_have_weights_of_their_own(tmp_path: Path) -> None:
    first = published(tmp_path, "gtp.seed0.jsonl", 1, 2, weight=1.0)
    second = published(tmp_path, "gtp.seed1.jsonl", 3, 4, weight=10.0)
    assert read_chosen(first, 2)["weight"].to_pylist() == [1.0, 1.0]
    assert read_chosen(second, 2)["weight"].to_pylist() == [10.0, 10.0]


def test_a_table_of_other_rows_is_refused(tmp_path: Path) -> None:
    subset = published(tmp_path, "a.jsonl", 1, 2, weight=1.0)
    with pytest.raises(DataError, match=r"has 2 rows, but .*a.jsonl has 3"):
        read_chosen(subset, 3)
    lines = subset.read_text().splitlines(keepends=True)
    subset.write_text("".join(reversed(lines)))
    with pytest.raises(DataError, match=r"a\.chosen\.parquet: was written beside another a\.jsonl"):
        read_chosen(subset, 2)
    with pytest.raises(DataError, match=r"b\.chosen\.parquet: is missing.*, or train without"):
        read_chosen(tmp_path / "b.jsonl", 2, ", or train without weights")
