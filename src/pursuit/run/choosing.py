"""Choosing rows from what a run knows of them, with nothing kept of it yet."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pursuit.engine import Engine
from pursuit.errors import SelectionError, SettingsError
from pursuit.progress import say
from pursuit.run.narrowing import kept_rows, narrowed, widened
from pursuit.run.reporting import Choice, Chosen
from pursuit.run.stages import Stages
from pursuit.selectors import Selector, check_budget, method, parse_budget
from pursuit.settings import Settings


@dataclass(frozen=True)
class Wish:
    """What is to be chosen, checked before any work; see `pursuit.run.run.Run.select`.

    Attributes:
        tells_target: say that the target is that which the run began with.
    """

    selector: Selector
    budget: str | int | float
    seed: int
    drop_sources: Sequence[str] = ()
    drop_leaks: bool = False
    tells_target: bool = False


def checked_selector(
    selector: Selector | str, budget: str | int | float, parameters: Mapping[str, Any], settings: Settings
) -> Selector:
    """The method, by itself or by name.

    Raises:
        SettingsError: an unknown method or parameter, or a budget that makes no sense.
        SelectionError: it needs a target and there is none.
    """
    chosen = method(selector, **parameters) if isinstance(selector, str) else selector
    if not isinstance(chosen, Selector):
        raise SettingsError(f"{chosen!r} is no selector: give a method's name, or such as Tagcos(clusters=50).")
    if parameters and not isinstance(selector, str):
        raise SettingsError(f"give {', '.join(parameters)} to {type(selector).__name__}(…) itself.")
    if chosen.needs_target and not settings.target:
        raise SelectionError(f"{chosen.name} needs a target: files with examples to be good at (--target FILE).")
    check_budget(budget)
    return chosen


def choose(stages: Stages, engine: Engine | None, wish: Wish) -> Chosen:
    """Choose, doing first whatever it needs that is not there yet.

    Args:
        engine: where passes over the rows run; this process without.
    """
    selector = wish.selector
    target_rows = _target_rows(stages, wish)
    encoded = stages.encode()
    keep, notes = kept_rows(encoded.rows, target_rows, drop_sources=wish.drop_sources, drop_leaks=wish.drop_leaks)
    for note in notes:
        warnings.warn(note, stacklevel=4)  # at the call of `Run.select`
    count = parse_budget(wish.budget, int(keep.sum()))
    features, target = stages.features_for(selector)
    started = time.monotonic()
    rows = narrowed(features, keep)
    rows = rows.on(engine) if engine is not None and selector.needs_features else rows
    selection = widened(selector.select(rows, count, target=target, seed=wish.seed), keep)
    choice = Choice(
        selection.method, dict(selection.parameters), count, wish.seed, list(wish.drop_sources), wish.drop_leaks,
        time.monotonic() - started, list(stages.settings.target),
    )  # fmt: skip
    return Chosen(choice, selection, features, target, keep, notes)


def _target_rows(stages: Stages, wish: Wish) -> pa.Table | None:
    """What is known of the target's rows, after a check that the method's settings fit them."""
    target, selector = stages.settings.target, wish.selector
    if not target:
        selector.check_target_sets([])
        return None
    rows = stages.encode_target()[0].rows
    selector.check_target_sets([str(name) for name in pc.unique(rows["source"]).to_pylist()])
    if selector.uses_target and wish.tells_target:
        say(
            f"towards the target that the run began with ({', '.join(target)}); in_domain=true follows the pool "
            f"instead: by --param, or as {selector.name}(in_domain=true) in a comparison"
        )
    return rows
