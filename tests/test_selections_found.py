"""Finding a selection of a run by its name, or by the beginning of it."""

import pytest

from pursuit.errors import SettingsError
from pursuit.run.saved import find_selection

NAMES = ("gtp-5-90ce61f9", "gtp-50-90ab0000", "tagcos-5-12345678", "tagcos-published-5-00000000")


@pytest.fixture
def selections(tmp_path):
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "selection.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (NAMES[0], NAMES[0]), ("gtp-5", NAMES[0]), ("gtp-50-90", NAMES[1]), ("gtp-5-90ce", NAMES[0]),
        ("tagcos-5", NAMES[2]), ("tagcos-p", NAMES[3]),
    ],
)  # fmt: skip
def test_a_beginning_is_enough_where_one_fits(selections, name, found):
    assert find_selection(selections, name) == selections / found


@pytest.mark.parametrize(("name", "said"), [("gtp", "name one"), ("tagcos", "name one"), ("less", "no selection")])
def test_otherwise_those_that_there_are_are_named(selections, name, said):
    with pytest.raises(SettingsError, match=f"{said}.*-5"):
        find_selection(selections, name)
