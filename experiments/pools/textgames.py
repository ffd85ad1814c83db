"""Text games: steps of their gold paths as instructions.

TextWorldExpress (Apache-2.0; needs Java): eight kinds of games, each with a gold path and with separate seeds to train
and to test on. A row is one step: the task, what is carried, what is seen and what was done last, and as response the
next action. The games are small ones of each kind, so that a small model can learn to win them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pursuit.files import write_json, write_text
from pursuit.progress import progress

INSTALL = "pip install textworld-express==1.1.0 (and a Java runtime)"
KINDS = {
    "arithmetic": "",
    "coin": "numLocations=3,includeDoors=1,numDistractorItems=0",
    "cookingworld": "numLocations=1,numIngredients=2,numDistractorItems=2,includeDoors=0,limitInventorySize=0",
    "mapreader": "numLocations=4,maxDistanceApart=2,includeDoors=0,maxDistractorItemsPerLocation=0",
    "peckingorder": "",
    "simonsays": "gameLength=10,numDistractors=3,verbose=0",
    "sorting": "",
    "twc": "numLocations=1,numItemsToPutAway=2,includeDoors=0,limitInventorySize=0",
}
# how the games' sentences are shortened, so that a prompt is half as long
SHORTER = (
    (r"(In (one|another) part of the room you see|There is also|You also see) ", ""),
    (r", that (has nothing on it|is empty)", ""),
    (r" that is closed", ": closed"),
    (r",? that (has|contains) ", ": "),
    (r" on it\b", ""),
    (r"Inventory( \(.*?\))?: |Your inventory is currently ", ""),
)
REMEMBERED = 3  # last actions in the prompt, with what they brought
STEPS = 2.0  # a game is lost after this many times the steps of its gold path, and FREE_STEPS more
FREE_STEPS = 5
PLAYED = "test"  # the fold whose games are played
TARGET_GAMES = 5  # of the held-out ones, whose steps are the target instead


@dataclass(frozen=True, slots=True)
class Game:
    """One game, which is the same each time it is begun."""

    kind: str
    fold: str
    seed: int
    gold: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """After which it is lost."""
        return int(STEPS * len(self.gold)) + FREE_STEPS


@dataclass(slots=True)
class State:
    """Where a game stands: what the prompt shows of it, and whether it is over."""

    task: str
    look: str
    inventory: str
    done: list[tuple[str, str]] = field(default_factory=list)  # (action, what was seen after it)
    valid: tuple[str, ...] = ()  # actions that the game would understand
    won: bool = False
    lost: bool = False
    score: float = 0.0  # the game's own, of at most 1

    def prompt(self) -> str:
        """What the model is asked."""
        past = "\n".join(f"> {action}\n{_plain(seen)}" for action, seen in self.done[-REMEMBERED:])
        return (
            f"Task: {self.task.strip()}\nYou carry: {_plain(self.inventory)}\nYou see: {_plain(self.look)}\n"
            f"Last actions:\n{past or 'none'}\nWhat is your next action?"
        )


class Games:
    """TextWorldExpress in one Java process."""

    def __init__(self) -> None:
        try:
            from textworld_express import TextWorldExpressEnv
        except ImportError as error:
            raise SystemExit(f"text games need one more package: {INSTALL}") from error
        self._world = TextWorldExpressEnv(envStepLimit=10_000)
        self._kind: str | None = None

    def seeds(self, kind: str, fold: str, count: int) -> list[int]:
        """The first seeds of a fold (train, dev, test)."""
        self._load(kind)
        every = {"train": self._world.getValidSeedsTrain, "dev": self._world.getValidSeedsDev,
                 "test": self._world.getValidSeedsTest}[fold]()  # fmt: skip
        return [int(seed) for seed in every[:count]]

    def begin(self, kind: str, fold: str, seed: int) -> Game:
        """A game with its gold path."""
        self._load(kind)
        self._world.reset(seed=seed, gameFold=fold, generateGoldPath=True)
        return Game(kind, fold, seed, tuple(self._world.getGoldActionSequence()))

    def states(self, game: Game, actions: Sequence[str]) -> Iterator[State]:
        """The state before the first action, and after each; the same state, changed and yielded again."""
        self._load(game.kind)
        observation, seen = self._world.reset(seed=game.seed, gameFold=game.fold, generateGoldPath=False)
        state = State(seen["taskDescription"], seen["look"] or observation, seen["inventory"])
        state.valid = tuple(seen["validActions"])
        yield state
        for action in actions:
            observation, _, _, seen = self._world.step(action)
            state.done.append((action, observation))
            state.look, state.inventory = seen["look"] or observation, seen["inventory"]
            state.valid = tuple(seen["validActions"])
            state.won, state.lost = bool(seen["tasksuccess"]), bool(seen["taskfailure"])
            state.score = float(seen["score"])
            yield state

    def after(self, game: Game, actions: Sequence[str]) -> State:
        """Where a game stands after these actions."""
        *_, last = self.states(game, actions)
        return last

    def _load(self, kind: str) -> None:
        if kind not in KINDS:
            raise SystemExit(f"{kind}: there is no such game; there are {', '.join(KINDS)}.")
        if kind != self._kind:
            self._world.load(kind, KINDS[kind])
            self._kind = kind


@contextmanager
def open_games() -> Iterator[Games]:
    """Start Java, and stop it afterwards."""
    games = Games()
    try:
        yield games
    finally:
        games._world.close()


def make_textgames(
    out: Path, kinds: Sequence[str], train_games: int, eval_games: int, played_games: int | None = None
) -> Path:
    """Write pool.jsonl (steps of train games), eval.jsonl and target.jsonl (steps of dev games), games.jsonl (first
    steps of test games, which are to be played) and about.json; the same bytes for the same arguments.

    No prompt of eval.jsonl, target.jsonl or games.jsonl stands in pool.jsonl. `source` is the kind of the game.

    Args:
        out: folder for the files.
        kinds: of games, those of `KINDS`.
        train_games, eval_games, played_games: of each kind: in pool.jsonl, in eval.jsonl, and in games.jsonl (as many
            as in eval.jsonl if not given).
    """
    played = eval_games if played_games is None else played_games
    folds = {"games": (PLAYED, 0, played), "eval": ("dev", 0, eval_games),
             "target": ("dev", eval_games, eval_games + TARGET_GAMES), "pool": ("train", 0, train_games)}  # fmt: skip
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in folds}
    held: set[str] = set()
    total = len(kinds) * sum(last - first for _, first, last in folds.values())
    with open_games() as games, progress("games", total, "games") as advance:
        for name, (fold, first, last) in folds.items():
            for kind in kinds:
                for seed in games.seeds(kind, fold, last)[first:]:
                    steps = list(_steps(games, games.begin(kind, fold, seed)))
                    steps = steps[:1] if name == "games" else steps
                    rows[name] += [step for step in steps if name != "pool" or _prompt(step) not in held]
                    advance(1)
            if name != "pool":
                held |= {_prompt(step) for step in rows[name]}
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        write_text(out / f"{name}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    about = {"rows": {name: len(lines) for name, lines in rows.items()}, "kinds": {kind: KINDS[kind] for kind in kinds},
             "train_games": train_games, "eval_games": eval_games, "played_games": played}  # fmt: skip
    write_json(out / "about.json", about)
    return out


def _steps(games: Games, game: Game) -> Iterator[dict[str, Any]]:
    """A row for each action of the gold path.

    Raises:
        SystemExit: the gold path does not win.
    """
    about = {"kind": game.kind, "fold": game.fold, "seed": game.seed, "gold": list(game.gold)}
    state = None
    for number, state in enumerate(games.states(game, game.gold)):
        if number < len(game.gold):
            turns = [{"role": "user", "content": state.prompt()}, {"role": "assistant", "content": game.gold[number]}]
            yield {"messages": turns, "source": game.kind, "metadata": {"game": about, "step": number}}
    if state is None or not state.won:
        raise SystemExit(f"{game.kind}, {game.fold}, seed {game.seed}: its gold path does not win.")


def _prompt(row: Mapping[str, Any]) -> str:
    return row["messages"][0]["content"]


def _plain(text: str) -> str:
    for pattern, shorter in SHORTER:
        text = re.sub(pattern, shorter, text)
    return " ".join(text.split())
