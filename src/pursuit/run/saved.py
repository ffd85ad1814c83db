"""Finding a selection that a run has made."""

from __future__ import annotations

from pathlib import Path

from pursuit.errors import SettingsError


def find_selection(selections: Path, name: str | Path | None) -> Path:
    """The folder of a selection, by path, by name in the run's `selections/`, or by the beginning of a name."""
    if name is not None:
        for folder in (selections / name, Path(name)):
            if (folder / "selection.json").is_file():
                return folder
    made = sorted(path.parent.name for path in selections.glob("*/selection.json"))
    fitting = [other for other in made if name is None or other.startswith(f"{name}-")]
    if len(fitting) == 1:
        return selections / fitting[0]
    known = ", ".join(fitting or made) or "none yet"
    wanted = "name one of them with --selection" if fitting else f"there is no selection {str(name)!r}"
    raise SettingsError(f"{selections}: {wanted}. Here are: {known}.")
