"""Players of text games: how many of them a model wins, and what they say of it themselves."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from experiments.pools.textgames import PLAYED, Game, State, open_games
from pursuit.evaluate import Respond
from pursuit.progress import progress


def success(respond: Respond, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """A player for `pursuit evaluate --player experiments.pools.players:success --eval games.jsonl`.

    Args:
        respond: the model.
        rows: first steps of games, as in games.jsonl; other steps, and steps of games of other folds, are left out.

    Returns:
        1 for each row whose game is won within its steps, 0 for the others; NaN for those that are left out.
    """
    return _of_games(rows, respond, lambda state: float(state.won), replies=True)


def score(respond: Respond, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """As `success`, but the games' own scores, which credit parts of a task: a share of what can be had, at least 0."""
    return _of_games(rows, respond, lambda state: max(state.score, 0.0), replies=True)


def chosen_success(respond: Respond, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """As `success`, but each action is the likeliest of those that the game would understand, as often on ALFWorld."""
    return _of_games(rows, respond, lambda state: float(state.won), replies=False)


def chosen_score(respond: Respond, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """As `score`, with the actions of `chosen_success`."""
    return _of_games(rows, respond, lambda state: max(state.score, 0.0), replies=False)


def _of_games(
    rows: Sequence[Mapping[str, Any]], respond: Respond, value: Callable[[State], float], *, replies: bool
) -> list[float]:  # fmt: skip
    """What each row's game came to."""
    places = [
        place for place, row in enumerate(rows)
        if row["metadata"]["step"] == 0 and row["metadata"]["game"]["fold"] == PLAYED
    ]  # fmt: skip
    about = [rows[place]["metadata"]["game"] for place in places]
    asked = tuple(Game(game["kind"], game["fold"], game["seed"], tuple(game["gold"])) for game in about)
    found = [math.nan] * len(rows)
    for place, state in zip(places, _played(respond, asked, replies=replies), strict=True):
        found[place] = value(state)
    return found


@lru_cache(maxsize=1)  # the second score of the same games need not play them again
def _played(respond: Respond, asked: tuple[Game, ...], *, replies: bool) -> list[State]:
    """How each game ended. All are played at once, an action of each at a time.

    Args:
        respond: the model.
        asked: the games.
        replies: act by the model's own words; False by the likeliest valid action.
    """
    act = _by_replies if replies else _by_choice
    actions: list[list[str]] = [[] for _ in asked]
    ended: dict[int, State] = {}
    playing = list(range(len(asked)))
    with open_games() as games, progress("games played", len(asked), "games") as advance:
        while playing:
            # one process holds one game; repeating the actions of the others is far cheaper than a reply
            states = {row: games.after(asked[row], actions[row]) for row in playing}
            over = {row: states[row] for row in playing if _over(states[row], asked[row])}
            ended |= over
            advance(len(over))
            playing = [row for row in playing if row not in over]
            for row, action in zip(playing, act(respond, [states[row] for row in playing]), strict=True):
                actions[row].append(action)
    return [ended[row] for row in range(len(asked))]


def _by_replies(respond: Respond, states: Sequence[State]) -> list[str]:
    replies = respond([_asked(state) for state in states])
    return [understood(reply.strip().split("\n")[0], state.valid) for reply, state in zip(replies, states, strict=True)]


def _by_choice(respond: Respond, states: Sequence[State]) -> list[str]:
    options = [sorted(set(state.valid)) for state in states]
    chosen = respond.choose([_asked(state) for state in states], options)
    return [valid[place] for valid, place in zip(options, chosen, strict=True)]


def _asked(state: State) -> list[dict[str, str]]:
    return [{"role": "user", "content": state.prompt()}]


def understood(reply: str, valid: Sequence[str]) -> str:
    """The reply, or where the game would not understand it the valid action that is most like it by its letters.

    Ties: the first in alphabetical order.
    """
    if reply in valid or not valid:
        return reply
    return max(sorted(set(valid)), key=lambda action: difflib.SequenceMatcher(None, reply, action).ratio())


def _over(state: State, game: Game) -> bool:
    return state.won or state.lost or len(state.done) >= game.steps
