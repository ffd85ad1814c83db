"""Why a row was chosen, in sentences, from what its method left in the selection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pursuit.selectors import Selection

SCORES = {  # what the score of a method means
    "tagcos": "similarity to the centre of its cluster", "gtp": "similarity to the goal",
    "omp": "similarity to the goal", "less": "influence on the target", "rds": "similarity to the target",
    "gradnorm": "gradient norm", "loss": "loss", "perplexity": "perplexity", "longest": "length of the response",
    "kcenter": "distance to the rows chosen before", "craig": "gain in how well the pool is covered",
}  # fmt: skip
Reason = Callable[[int], str]  # of a place in the order of choice; "" where there is nothing to say


def reasons(selection: Selection, places: Sequence[int], more: Sequence[Mapping[int, str]] = ()) -> list[list[str]]:
    """Sentences for each of some places in the order of choice.

    Args:
        places: from 0.
        more: further sentences by place.
    """
    known: list[Reason] = [
        _cluster(selection), _target(selection), _pass(selection), _gain(selection), _score(selection),
        _contribution(selection),
    ]  # fmt: skip
    return [
        [sentence for reason in known if (sentence := reason(place))] + [part[place] for part in more if place in part]
        for place in places
    ]


def _nothing(place: int) -> str:
    return ""


def _cluster(selection: Selection) -> Reason:
    """Which choice of its cluster it is, and what it took off the cluster's residual."""
    if selection.clusters is None:
        return _nothing
    about = {entry["cluster"]: entry for entry in selection.diagnostics.get("clusters", ())}
    steps = selection.columns.get("step")

    def reason(place: int) -> str:
        cluster = int(selection.clusters[place])  # type: ignore[index]
        entry = about.get(cluster)
        if entry is None:
            return ""
        of = f"of {entry['chosen']:,} from cluster {cluster}, which has {entry['size']:,} rows"
        if steps is None:
            return f"One {of}."
        step = int(steps[place])
        return f"Choice {step + 1:,} {of}{_fall(entry, step)}."

    return reason


def _fall(entry: Mapping[str, Any], step: int) -> str:
    curve = entry.get("residuals", ())
    if entry.get("drops") or entry.get("filled") or len(curve) != entry["chosen"]:
        return ""  # steps and choices do not run side by side
    starts = np.cumsum([0, *entry.get("pass_steps", ())])
    before = 1.0 if step in starts else float(curve[step - 1])
    again = " of a new pass" if step in starts and step else ""
    return f"; it took what the cluster's centre leaves unexplained{again} from {before:.2f} to {curve[step]:.2f}"


def _target(selection: Selection) -> Reason:
    names = target_names(selection)
    return _nothing if names is None else lambda place: f"For the target {names[place]}." if names[place] else ""


def target_names(selection: Selection) -> list[str] | None:
    """The target of every chosen row, where the method tells several apart."""
    for column, entries in (("target", "targets"), ("subtask", "subtasks")):
        codes, about = selection.columns.get(column), selection.diagnostics.get(entries, ())
        if codes is not None and len(about) > 1:
            names = [str(entry.get(column, "")) for entry in about]
            return [names[int(code)] if 0 <= code < len(names) else "" for code in codes]
    return None


def _pass(selection: Selection) -> Reason:
    numbers = selection.columns.get("pass")
    if numbers is None:
        return _nothing

    def reason(place: int) -> str:
        number = int(numbers[place])
        if number < 0:
            return "Fills the budget, at weight 0: it is among the most similar of the rest."
        if number == 0:
            return "Chosen jointly: its weight was fitted together with those of the rows beside it."
        return f"Chosen in pass {number + 1}, among the rows that the passes before it left."

    return reason


def _gain(selection: Selection) -> Reason:
    """What a greedy pursuit's residual fell by."""
    curves = selection.diagnostics.get("residuals", {})
    curve = next(iter(curves.values()), ())
    if len(curves) != 1 or len(curve) != len(selection) or "support_changes" in selection.diagnostics:
        return _nothing

    def reason(place: int) -> str:
        before = 1.0 if place == 0 else float(curve[place - 1])
        return f"It took the residual from {before:.3f} to {curve[place]:.3f}." if curve[place] <= before else ""

    return reason


def _score(selection: Selection) -> Reason:
    scores = selection.scores
    if scores is None or not np.isfinite(scores).all():
        return _nothing
    name = SCORES.get(selection.method, "score")
    higher = np.searchsorted(np.sort(-scores), -scores, side="left") + 1
    title = name[:1].upper() + name[1:]
    return lambda place: f"{title}: {scores[place]:.3g}, the {_ordinal(int(higher[place]))} among the chosen."


def _ordinal(number: int) -> str:
    if number == 1:
        return "highest"
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number:,}{ending} highest"


def _contribution(selection: Selection) -> Reason:
    """How much of the sum along the goal a row carries, for methods whose score is along one common goal."""
    scores, weights = selection.scores, selection.weights
    one_goal = selection.method in ("gtp", "omp") and target_names(selection) is None
    if not one_goal or scores is None or (weights == weights[:1]).all() or weights.min() < 0:
        return _nothing
    carried = weights * scores
    total = carried.sum()
    if not np.isfinite(total) or total <= 0:
        return _nothing

    def reason(place: int) -> str:
        share = f"{100 * carried[place] / total:.1f}%"
        return f"Its weight times its similarity is {share} of what all reach along the goal." if weights[place] else ""

    return reason
