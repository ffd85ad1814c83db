"""All batch selectors by name, and their state on disk."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pursuit.errors import SettingsError, StoreError
from pursuit.files import tensor_metadata, write_tensors
from pursuit.online.base import BatchSelector
from pursuit.online.baselines import FullBatch, HardestBatch, RandomBatch
from pursuit.online.infobatch import InfoBatch
from pursuit.online.optbatch import OptBatch
from pursuit.progress import say

BATCH_SELECTORS: dict[str, type[BatchSelector]] = {
    kind.name: kind for kind in (OptBatch, FullBatch, RandomBatch, HardestBatch, InfoBatch)
}


def batch_selection(name: str, **settings: Any) -> BatchSelector:
    """The batch selector of that name with these settings.

    Raises:
        SettingsError: an unknown name or setting, or a wrong value; says what would be accepted.
    """
    if name not in BATCH_SELECTORS:
        near = difflib.get_close_matches(str(name), BATCH_SELECTORS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise SettingsError(f"there is no batch selection {name!r}.{hint} There are {', '.join(BATCH_SELECTORS)}.")
    return BATCH_SELECTORS[name](**settings)


def save_state(selector: BatchSelector, path: str | Path) -> None:
    """Write what the selector has learnt as one safetensors file, atomically."""
    write_tensors(Path(path), selector.state(), {"batch_selection": selector.name, "settings": _settings(selector)})


def load_state(selector: BatchSelector, path: str | Path) -> None:
    """Let the selector go on from what `save_state` wrote; it may have other settings, and says so.

    Raises:
        StoreError: a damaged file, or the state of another kind of selector.
    """
    try:
        with safe_open(str(path), framework="pt") as handle:
            made_with = tensor_metadata(handle)
            state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read as safetensors ({error}).") from error
    if (name := made_with.get("batch_selection")) != selector.name:
        raise StoreError(f"{path}: this is the state of {name!r}, not of {selector.name!r}. Resume with the same.")
    selector.load(state)
    _say_differences(selector, made_with.get("settings", {}), Path(path))


def _say_differences(selector: BatchSelector, before: Mapping[str, Any], path: Path) -> None:
    now = _settings(selector)
    differing = [key for key, value in now.items() if key in before and before[key] != value]
    if differing:
        old, new = (", ".join(f"{key}={of[key]!r}" for key in differing) for of in (before, now))
        say(f"{path.name} is of a training with {old}; {selector.name} goes on with {new}.")


def _settings(selector: BatchSelector) -> dict[str, Any]:
    """As JSON holds them; one function as a schedule is not told from another."""
    return selector.model_dump(mode="json", fallback=lambda function: "a function")
