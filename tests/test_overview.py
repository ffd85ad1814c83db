"""What the report is told about a selection is true of it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pursuit import Features, Random, Selection
from pursuit.export.subset import chosen_table
from pursuit.overview import gradient_map, near_duplicates, pool_table
from pursuit.overview.texts import Texts


def selection_of(indices, n, **columns):
    return Selection(np.asarray(indices), np.ones(len(indices)), "test", n, columns=columns)


TEXTS = Texts(None)


def test_near_duplicates_are_those_of_the_chosen_rows():
    rows = np.eye(6, 12)
    rows[4] = rows[1] + 0.05 * rows[2]
    found = near_duplicates(selection_of([3, 4, 1, 0], 6), Features.from_array(rows), TEXTS.whole)
    assert [(pair.a_rank, pair.b_rank) for pair in found] == [(2, 3)]
    assert (found[0].a_text, found[0].b_text) == ("row 4", "row 1")
    np.testing.assert_allclose(found[0].similarity, 1 / np.hypot(1, 0.05), rtol=1e-5)


@given(n=st.integers(1, 30), d=st.integers(1, 5), k=st.integers(1, 30), zero=st.booleans())
def test_any_pool_has_tables_and_perhaps_a_map(n, d, k, zero):
    rows = np.zeros((n, d)) if zero else np.random.default_rng(0).normal(size=(n, d))
    features = Features.from_array(rows)
    selection = Random().select(features, min(k, n))
    table = pool_table(selection, features)
    assert table["chosen"].to_numpy().sum() == len(selection)
    assert chosen_table(selection, features)["index"].to_pylist() == selection.indices.tolist()
    drawn = gradient_map(selection, features, TEXTS)
    if drawn is not None:
        assert np.isfinite(drawn.xy).all()
        assert drawn.chosen.sum() == len(selection)
    again = gradient_map(selection, features, TEXTS)
    assert (drawn is None and again is None) or np.array_equal(drawn.xy, again.xy)


def test_the_map_shows_the_two_main_directions():
    generator = np.random.default_rng(1)
    spread = generator.normal(size=(200, 20)) * np.array([10, 5] + [0.1] * 18)
    drawn = gradient_map(selection_of([0, 1], 200), Features.from_array(spread, normalise=False), TEXTS)
    assert abs(np.corrcoef(drawn.xy[:, 0], spread[:, 0])[0, 1]) > 0.99
    assert abs(np.corrcoef(drawn.xy[:, 1], spread[:, 1])[0, 1]) > 0.99
