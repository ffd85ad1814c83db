"""The experiments' pools: read from packages as they are laid out, held out apart from the pool, games to be played."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from experiments.pools.items import (
    COLLECTIONS,
    SHAREGPT_FILE,
    VERSION,
    Item,
    bigbench_items,
    evals_items,
    reasoning_gym_items,
    sharegpt_items,
)
from experiments.pools.mixed import make_mixed, question_key, row, split_items
from experiments.pools.players import chosen_score, chosen_success, success
from experiments.pools.policy import make_policy
from experiments.pools.textgames import Game, State, make_textgames, open_games
from hypothesis import given
from hypothesis import strategies as st

from pursuit.evaluate import evaluate, read_eval_set
from pursuit.evaluate.scorers import reasoning_gym
from pursuit.models.loading import load_model, load_tokenizer
from pursuit.pool import Pool
from tiny import tiny_model, tiny_tokenizer


def write_bigbench(path: Path) -> Path:
    tasks = {
        "natural_instructions/subtask9": {
            "task_prefix": "Definition: " + "Do it. " * 90, "examples": [{"input": "Fact: a.", "target": ["b.", "c."]}],
        },
        "sports": {
            "task_prefix": "Plausible?", "examples": [{"input": "He ran.", "target_scores": {"no": 0, "yes": 1}}],
        },
        "units/easy": {"examples": [{"input": "1 + 1", "target": "2"}]},
        "kannada": {"examples": [{"input": "x", "target": "y"}]},
    }  # fmt: skip
    with tarfile.open(path, "w:gz") as archive:
        for name, task in tasks.items():
            content = json.dumps(task).encode()
            member = tarfile.TarInfo(f"bigbench-1.0.0/bigbench/benchmark_tasks/{name}/task.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_bigbench_tasks_keep_definition_question_options_and_answer(tmp_path: Path) -> None:
    found = {item.family: item for item in bigbench_items(write_bigbench(tmp_path / "b.tar.gz"))}
    assert set(found) == {"subtask9", "sports", "units/easy"}
    natural = found["subtask9"]
    assert natural.collection == "natural_instructions"
    assert (natural.question, natural.answer) == ("Fact: a.", "b.")
    assert natural.prompt.endswith("Do it.\nFact: a.")
    assert len(natural.prompt) < 520
    assert found["sports"].prompt == "Plausible?\nHe ran.\nOptions: no; yes"
    assert (found["sports"].answer, found["sports"].options) == ("yes", ("no", "yes"))
    assert (found["units/easy"].prompt, found["units/easy"].collection) == ("1 + 1", "bigbench")


def test_evals_and_a_sharegpt_file_that_is_cut_off_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Capital?"}]
    lines = [json.dumps({"input": chat, "ideal": ["Paris", "paris"]}), '{"input": "half', json.dumps({"other": 1})]
    with zipfile.ZipFile(tmp_path / "evals.whl", "w") as archive:
        archive.writestr("evals/registry/data/capitals/samples.jsonl", "\n".join(lines))
        archive.writestr("evals/registry/data/notes.txt", "none")
    assert list(evals_items(tmp_path / "evals.whl")) == [
        Item("evals", "capitals/samples", "Answer.\nCapital?", "Capital?", "Paris")
    ]
    turns = [{"from": "human", "value": " Hi? "}, {"from": "gpt", "value": "Yes."}, {"from": "human", "value": "More"}]
    answer_first = {"conversations": turns[1:]}
    whole = json.dumps([{"conversations": turns}, answer_first, {"conversations": turns}])
    with zipfile.ZipFile(tmp_path / "sharegpt.whl", "w") as archive:
        archive.writestr(SHAREGPT_FILE, whole[:-40])
    assert list(sharegpt_items(tmp_path / "sharegpt.whl")) == [Item("sharegpt", "chat", "Hi?", "Hi?", "Yes.")]


def test_reasoning_gym_rows_carry_what_its_scorer_needs() -> None:
    pytest.importorskip("reasoning_gym")
    items = list(reasoning_gym_items(["chain_sum", "spell_backward"], 3))
    assert [item.family for item in items] == ["chain_sum"] * 3 + ["spell_backward"] * 3
    for item in items:
        assert reasoning_gym([], item.answer, json.loads(json.dumps(row(item)))) == 1


def some_items(count: int = 60) -> list[Item]:
    """Of every collection, with families that ask the same in another layout, and in other families."""
    items = []
    for number in range(count):
        for collection in ("natural_instructions", "bigbench", "evals", "sharegpt", "reasoning_gym"):
            question = f"What is {number % 45} + 1?" if collection != "sharegpt" else f"Hello {number}"
            layout = question.upper().replace(" ", "  ") if number % 3 else question
            family = f"{collection}-{number % 2}"
            options = (str(number % 45 + 1), "many") if collection == "bigbench" else None
            item = Item(collection, family, f"Answer this ({family}).\n{layout}", layout, str(number % 45 + 1), options)
            items.append(item)
    return items


@given(
    rows=st.integers(5, 60), eval_rows=st.integers(1, 6), target_rows=st.integers(0, 4), seed=st.integers(0, 9),
    families=st.sets(st.sampled_from(["natural_instructions-0", "bigbench-1", "evals-0"]), min_size=1).map(sorted),
)  # fmt: skip
def test_no_question_of_held_out_rows_or_target_stands_elsewhere(
    rows: int, eval_rows: int, target_rows: int, seed: int, families: list[str]
) -> None:
    split = split_items(some_items(), rows, eval_rows, target_rows, families, seed)
    assert len(split.pool) == rows
    for part, count in ((split.heldout, eval_rows), (split.target, target_rows)):
        assert [item.family for item in part] == [family for family in families for _ in range(count)]
    parts = [{question_key(item) for item in part} for part in (split.pool, split.heldout, split.target)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert len(parts[1]) == len(split.heldout)
    assert split == split_items(some_items(), rows, eval_rows, target_rows, families, seed)


def test_a_family_that_is_too_small_or_a_pool_too_large_is_named() -> None:
    with pytest.raises(SystemExit, match=r"none: has 0 different questions, but 3"):
        split_items(some_items(), 5, 2, 1, ["none"], 0)
    with pytest.raises(SystemExit, match="9,000 rows were asked for"):
        split_items(some_items(), 9000, 2, 1, ["bigbench-0"], 0)


def test_the_mixed_pool_is_the_same_each_time_and_can_be_scored_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PURSUIT_CACHE", str(tmp_path / "cache"))
    items = some_items()
    for name in COLLECTIONS:  # what was read from the packages, as it is kept in the cache
        folder = tmp_path / "cache" / f"pool-items-{VERSION}-{name}"
        folder.mkdir(parents=True)
        wanted = {"natural_instructions", "bigbench"} if name == "bigbench" else {name}
        lines = [json.dumps(asdict(item)) for item in items if item.collection in wanted]
        (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    made = [
        make_mixed(tmp_path / name, 40, eval_rows=4, target_rows=2, families=["bigbench-0", "evals-1"], seed=seed)
        for name, seed in (("one", 0), ("two", 0), ("three", 1))
    ]
    contents = [[(out / f"{name}.jsonl").read_bytes() for name in ("pool", "eval", "target")] for out in made]
    assert contents[0] == contents[1]
    assert all(one != other for one, other in zip(contents[0], contents[2], strict=True))
    pool = list(Pool(made[0] / "pool.jsonl"))
    assert len(pool) == json.loads((made[0] / "about.json").read_text())["rows"]["pool"] == 40
    found = evaluate(
        tiny_model("llama"), tiny_tokenizer(), made[0] / "eval.jsonl", metrics=["loss", "choice"], batch_tokens=2000
    )
    assert {name: scores["loss"].count for name, scores in found.families.items()} == {"bigbench-0": 4, "evals-1": 4}
    assert found.left_out["choice"] == 4


needs_games = pytest.mark.skipif(shutil.which("java") is None, reason="text games need Java")


@pytest.fixture(scope="module")
def games(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("textworld_express")
    return make_textgames(tmp_path_factory.mktemp("games"), ["coin", "simonsays"], train_games=3, eval_games=2)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@needs_games
def test_steps_of_text_games_are_rows_whose_prompts_are_not_held_out_ones(games: Path) -> None:
    parts = {name: lines(games / f"{name}.jsonl") for name in ("pool", "eval", "target", "games")}
    prompts = {name: {step["messages"][0]["content"] for step in steps} for name, steps in parts.items()}
    assert not prompts["pool"] & (prompts["eval"] | prompts["target"] | prompts["games"])
    assert {step["source"] for step in parts["pool"]} == {"coin", "simonsays"}
    assert {step["metadata"]["game"]["fold"] for step in parts["eval"]} == {"dev"}
    assert {step["metadata"]["game"]["fold"] for step in parts["games"]} == {"test"}
    assert len(parts["games"]) == 4
    for step in parts["pool"]:
        assert step["messages"][1]["content"] == step["metadata"]["game"]["gold"][step["metadata"]["step"]]


@needs_games
def test_a_player_of_gold_actions_wins_and_one_that_stands_still_does_not(games: Path) -> None:
    rows = lines(games / "games.jsonl")

    def gold(conversations: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
        """Looks up what the gold path does at each prompt, over all games' prompts on their gold paths."""
        return [known[turns[-1]["content"]] for turns in conversations]

    known = {}
    with open_games() as worlds:
        for asked in rows:
            about = asked["metadata"]["game"]
            game = Game(about["kind"], about["fold"], about["seed"], tuple(about["gold"]))
            for number, state in enumerate(worlds.states(game, game.gold)):
                known[state.prompt()] = (*game.gold, "")[number]
            assert worlds.after(game, game.gold[:-1]).won is False
    assert success(gold, rows) == [1.0] * 4
    assert success(lambda conversations: ["wait"] * len(conversations), rows) == [0.0] * 4

    class Chooser:
        """Takes the gold action, or the last valid one."""

        def __init__(self, good: bool) -> None:
            self.good = good

        def choose(self, asked: Sequence[Sequence[Mapping[str, Any]]], options: Sequence[Sequence[str]]) -> list[int]:
            if not self.good:
                return [len(valid) - 1 for valid in options]
            return [valid.index(action) for valid, action in zip(options, gold(asked), strict=True)]

    assert chosen_success(Chooser(good=True), rows) == chosen_score(Chooser(good=True), rows) == [1.0] * 4
    assert sum(chosen_success(Chooser(good=False), rows)) < 4


def test_a_prompt_shows_what_is_seen_and_the_last_actions_shortened() -> None:
    look = "You are in the kitchen. In one part of the room you see a fridge that is closed. There is also a counter " \
        "that has a cookbook on it. You also see a box, that has nothing on it. "  # fmt: skip
    state = State("Find the coin.", look, "Inventory: Your inventory is currently empty.",
                  [(f"step {number}", f"seen {number}") for number in range(5)])  # fmt: skip
    assert state.prompt() == (
        "Task: Find the coin.\nYou carry: empty.\n"
        "You see: You are in the kitchen. a fridge: closed. a counter: a cookbook. a box.\n"
        "Last actions:\n> step 2\nseen 2\n> step 3\nseen 3\n> step 4\nseen 4\nWhat is your next action?"
    )
    assert "Last actions:\nnone\n" in replace(state, done=[]).prompt()


def test_the_small_policy_is_a_model_folder_that_reads_its_pool(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": f"You see: a box {number}."},
              {"role": "assistant", "content": f"open box {number}"}] for number in range(50)]  # fmt: skip
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps({"messages": both}) + "\n" for both in turns))
    folder = make_policy(tmp_path / "pool.jsonl", tmp_path / "policy")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    assert 0.5e6 < sum(parameter.numel() for parameter in model.parameters()) < 1e6
    data = read_eval_set(tmp_path / "pool.jsonl", tokenizer)
    ids, response = data[3]
    assert tokenizer.decode(ids[response]) == "open box 3<end>"
    assert evaluate(model, tokenizer, data, metrics=["loss"]).overall["loss"].mean < 8
    again = make_policy(tmp_path / "pool.jsonl", tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
