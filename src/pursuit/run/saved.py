"""Finding a selection that a run has made, and telling it from others."""

from __future__ import annotations

from pathlib import Path

from pursuit.errors import SettingsError, StoreError
from pursuit.files import read_json
from pursuit.selectors import method


def find_selection(selections: Path, name: str | Path | None) -> Path:
    """The folder of a selection, by path, by name in the run's `selections/`, or by the beginning of a name."""
    if name is not None:
        for folder in (selections / name, Path(name)):
            if (folder / "selection.json").is_file():
                return folder
    made = sorted(path.parent.name for path in selections.glob("*/selection.json"))
    parts = [other for other in made if name is None or other.startswith(f"{name}-")]
    fitting = parts or [other for other in made if other.startswith(str(name))]
    if len(fitting) == 1:
        return selections / fitting[0]
    shown = [f"{other} ({described(selections / other)})" for other in fitting or made]
    known = ", ".join(shown) or "none yet"
    wanted = "name one of them with --selection" if fitting else f"there is no selection {str(name)!r}"
    raise SettingsError(f"{selections}: {wanted}. Here are: {known}.")


def described(folder: Path) -> str:
    """What tells a selection from others: its rows, seed, target, and parameters that are not the method's defaults."""
    try:
        choice = read_json(folder / "choice.json")
        usual, selector = method(choice["method"]), method(choice["method"], **choice["parameters"])
    except (StoreError, SettingsError, KeyError):
        return "not known"
    given = [f"{name}={value}" for name, value in selector if value != getattr(usual, name)]
    looked_at = choice.get("target") if selector.needs_target or selector.uses_target else None
    target = [f"target {', '.join(Path(path).name for path in looked_at)}"] if looked_at else []
    without = [f"without {', '.join(choice['drop_sources'])}"] if choice.get("drop_sources") else []
    leaks = ["without leaks"] if choice.get("drop_leaks") else []
    return ", ".join([f"{choice['budget']:,} rows", f"seed {choice['seed']}", *given, *target, *without, *leaks])
