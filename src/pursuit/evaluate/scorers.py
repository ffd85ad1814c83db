"""Scores by any Python function: of a response to a row, or of a model that plays."""

from __future__ import annotations

import functools
import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pursuit.errors import DataError, SettingsError
from pursuit.evaluate.asking import Respond
from pursuit.evaluate.rows import EvalRow

Turn = dict[str, str]  # {"role": …, "content": …}
Scorer = Callable[[list[Turn], str, Mapping[str, Any]], float]  # (prompt, response, the row's fields) → score
Player = Callable[[Respond, Sequence[Mapping[str, Any]]], Sequence[float]]  # (respond, rows' fields) → score of each


def load_function(place: str) -> Callable[..., Any]:
    """The function that `package.module:function` names; modules of the working directory are found too.

    Raises:
        SettingsError: it is not written so, cannot be imported, or is not there.
    """
    module, colon, name = place.partition(":")
    if not colon or not module or not name:
        raise SettingsError(f"{place!r}: name a function as package.module:function.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except ImportError as error:
        raise SettingsError(f"{place}: {module} cannot be imported ({error}).") from error
    except AttributeError as error:
        raise SettingsError(f"{place}: {module} has no {name}.") from error
    if not callable(found):
        raise SettingsError(f"{place}: this is {type(found).__name__}, not a function.")
    return found


def named_functions(places: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """name → function, of `name=package.module:function`, or of a place alone, whose name is the function's.

    Raises:
        SettingsError: two have one name, or one cannot be loaded.
    """
    found: dict[str, Callable[..., Any]] = {}
    for place in places:
        name, equals, where = place.partition("=")
        name, where = (name, where) if equals else (place.rpartition(":")[2].replace(".", "_"), place)
        if name in found:
            raise SettingsError(f"{place}: there are two called {name!r}; name one: other=package.module:function.")
        found[name] = load_function(where)
    return found


def score_responses(
    scorer: Scorer, name: str, rows: Sequence[EvalRow], responses: Sequence[str | None]
) -> NDArray[np.float64]:
    """(N,) a scorer's value of each response; NaN where there is none.

    Raises:
        DataError: the scorer fails at a row, or gives no number; with file and line.
    """
    scores = np.full(len(rows), np.nan)
    for place, (row, response) in enumerate(zip(rows, responses, strict=True)):
        if response is None or row.prompt is None:
            continue
        try:
            scores[place] = scorer(turns(row), response, row.record)
        except Exception as error:  # whatever a user's function raises belongs to this row
            reason = f"the scorer {name} failed on it: {type(error).__name__}: {error}"
            raise DataError(reason, path=row.example.path, line=row.example.line) from error
        if not math.isfinite(scores[place]):
            reason = f"the scorer {name} gave {scores[place]} for it, which is not a number."
            raise DataError(reason, path=row.example.path, line=row.example.line)
    return scores


def play(player: Player, name: str, rows: Sequence[EvalRow], respond: Respond) -> NDArray[np.float64]:
    """(N,) a player's score of each row; NaN for rows it leaves out.

    Raises:
        SettingsError: it gave another number of scores than there are rows, or no numbers.
    """
    given = player(respond, [row.record for row in rows])
    try:
        scores = np.asarray(list(given), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"the player {name} must return a number for each row ({error}).") from error
    if scores.shape != (len(rows),):
        raise SettingsError(f"the player {name} returned {len(scores):,} scores for {len(rows):,} rows.")
    return scores


def turns(row: EvalRow) -> list[Turn]:
    """The prompt of a row as scorers see it."""
    return [{"role": message.role, "content": message.content} for message in row.prompt or ()]


def reasoning_gym(prompt: list[Turn], response: str, row: Mapping[str, Any]) -> float:
    """Score by reasoning-gym, 0 to 1: the row's `metadata` holds `dataset` (its name) and `entry` (as it was drawn).

    Raises:
        SettingsError: reasoning-gym is not installed.
        KeyError: the row does not hold these.
    """
    return float(_reasoning_gym_scorer(row["metadata"]["dataset"])(answer=response, entry=row["metadata"]["entry"]))


@functools.cache
def _reasoning_gym_scorer(dataset: str) -> Callable[..., float]:
    try:
        from reasoning_gym.factory import get_score_answer_fn
    except ImportError as error:
        raise SettingsError("this scorer needs one more package: pip install reasoning-gym") from error
    return get_score_answer_fn(dataset)
