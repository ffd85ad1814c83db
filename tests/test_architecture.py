"""The rooms of docs/architecture.md: imports run one way between them, and the solvers stand alone."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pursuit

ROOT = Path(pursuit.__file__).parent


def imported(path: Path) -> Iterator[str]:
    """Modules of pursuit that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        yield from (name for name in names if name.startswith("pursuit."))


def rooms() -> dict[str, set[str]]:
    """room → the rooms that it imports; a module beside the rooms is one of its own."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).with_suffix("").parts[0]
        if room != "__init__":
            found[room] |= {name.split(".")[1] for name in imported(path)} - {room}
    return found


def test_imports_between_rooms_run_one_way() -> None:
    try:
        tuple(TopologicalSorter(rooms()).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")


def test_solvers_import_nothing_of_the_rest() -> None:
    assert rooms()["solvers"] == set()


def test_every_room_is_on_the_page_about_them() -> None:
    page = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [room for room in rooms() if f"`{room}/`" not in page and f"`{room}`" not in page] == []
