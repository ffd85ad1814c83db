"""A planted pool gives what it must: with made gradients, and with those of a small model on planted texts.

Copies are chosen once, a rare family that the target needs is found, wrong answers and noise are avoided. LESS takes
copies together, by its definition; that is shown too, as it is what the joint choice is for.
"""

from __future__ import annotations

import json
import random
from collections import Counter

import numpy as np
import pytest

from pursuit import Features, Run
from pursuit.compare.plan import parse_method
from pursuit.selectors import method
from tiny import tiny_model, tiny_tokenizer

CHECKPOINTS, DIMENSION = 2, 128
PARTS = {"common": 300, "rare": 8, "copies": 4, "wrong": 40, "noise": 60}  # copies: of each of the rare rows


@pytest.fixture(scope="module", params=range(3))
def planted(request):
    """Features of a pool and of a target, and of each row what it is and which rare row it says."""
    draw = np.random.default_rng(request.param)
    directions = np.linalg.qr(draw.normal(size=(DIMENSION, 8)))[0].T
    rare, common = directions[:3], directions[3:]

    def around(means: np.ndarray, spread: float = 0.5) -> np.ndarray:
        noise = draw.normal(size=(len(means), CHECKPOINTS, DIMENSION)) / np.sqrt(DIMENSION)
        return means[:, None] + spread * noise

    skills = np.arange(PARTS["rare"]) % 3
    first = around(rare[skills])
    rows = {
        "common": around(common[draw.integers(len(common), size=PARTS["common"])]),
        "rare": first,
        "copies": np.repeat(first, PARTS["copies"], axis=0),
        "wrong": around(-rare[draw.integers(3, size=PARTS["wrong"])]),  # another answer pushes the other way
        "noise": draw.normal(size=(PARTS["noise"], CHECKPOINTS, DIMENSION)),
    }
    kinds = np.concatenate([[name] * len(part) for name, part in rows.items()])
    says = np.full(len(kinds), -1)
    says[kinds == "rare"] = np.arange(PARTS["rare"])
    says[kinds == "copies"] = np.repeat(np.arange(PARTS["rare"]), PARTS["copies"])
    order = draw.permutation(len(kinds))
    pool = Features.from_array(np.concatenate(list(rows.values()))[order], sources=kinds[order].tolist())
    target = Features.from_array(around(rare[np.arange(12) % 3]))
    return pool, target, kinds[order], says[order]


def test_the_joint_choice_takes_each_rare_row_once_and_nothing_planted(planted):
    pool, target, kinds, says = planted
    chosen = method("gtp").select(pool, PARTS["rare"], target=target).indices
    assert sorted(says[chosen]) == list(range(PARTS["rare"])), "every rare row is found, none is said twice"
    assert set(kinds[chosen]) <= {"rare", "copies"}


def test_one_by_one_they_are_found_too_but_perhaps_not_all(planted):
    pool, target, kinds, says = planted
    chosen = method("omp").select(pool, PARTS["rare"], target=target).indices
    found = says[chosen][says[chosen] >= 0]
    assert len(set(found)) == len(found) > PARTS["rare"] / 2
    assert "wrong" not in kinds[chosen]


def test_similarity_alone_finds_the_rare_rows_with_their_copies(planted):
    pool, target, kinds, says = planted
    budget = PARTS["rare"] * (1 + PARTS["copies"])
    chosen = method("less").select(pool, budget, target=target).indices
    assert set(kinds[chosen]) == {"rare", "copies"}
    few = method("less").select(pool, PARTS["rare"], target=target).indices
    assert max(Counter(says[few]).values()) > 1, "the most similar rows are copies of each other"


def test_without_a_target_copies_are_chosen_once_too(planted):
    pool, _, _, says = planted
    spread = says[method("kcenter").select(pool, 40).indices]
    joint = method("gtp").select(pool, 40)
    first_pass = says[joint.indices[joint.columns["pass"] == 0]]  # a further pass may come back to them
    for chosen in (spread, first_pass):
        assert len(set(chosen[chosen >= 0])) == np.sum(chosen >= 0)
    assert np.sum(spread >= 0)


@pytest.mark.parametrize("name", ["tagcos(clusters=8)", "gtp"])
def test_without_a_target_noise_is_chosen_less_than_it_is_there(planted, name):
    pool, _, kinds, _ = planted
    text, parameters = parse_method(name)
    chosen = method(text, **parameters).select(pool, 40).indices
    assert np.mean(kinds[chosen] == "noise") < np.mean(kinds == "noise")


# ---- texts: which word answers depends on the topic; a row is wrong when it has the answer of another topic

TOPICS = {"sea": "wind", "apple": "good", "france": "paris", "italy": "rome"}
RARE = "italy"
FILL = "the capital of is answer question count letters day how are you what write short".split()


def row(draw: random.Random, topic: str, answer: str, kind: str) -> dict[str, str]:
    prompt = draw.choices(FILL, k=6)
    prompt[draw.randrange(6)] = topic
    return {"prompt": " ".join(prompt), "response": " ".join([answer] * 3), "source": kind}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A run of a tiny model on planted texts."""
    folder, draw = tmp_path_factory.mktemp("planted"), random.Random(0)
    common = [topic for topic in TOPICS if topic != RARE]
    pool = [row(draw, topic, TOPICS[topic], "common") for topic in draw.choices(common, k=90)]
    pool += [row(draw, RARE, TOPICS[RARE], "rare") for _ in range(6)]
    pool += [row(draw, RARE, TOPICS[topic], "wrong") for topic in draw.choices(common, k=20)]
    pool += [
        {"prompt": " ".join(draw.choices(FILL, k=6)), "response": " ".join(draw.choices(FILL, k=3)), "source": "noise"}
        for _ in range(30)
    ]
    draw.shuffle(pool)
    target = [row(draw, RARE, TOPICS[RARE], "exam") for _ in range(6)]
    for name, rows in (("pool", pool), ("target", target)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    run = Run(
        folder / "run", model=folder / "model", pool=folder / "pool.jsonl", target=folder / "target.jsonl",
        lora={"rank": 4, "alpha": 8}, features={"dimension": 512, "batch_tokens": 1024},
        warmup={"batch_size": 16, "sample": 1.0, "checkpoint_steps": [4, 8], "learning_rate": 1e-3},
    )  # fmt: skip
    return run, np.array([one["source"] for one in pool])


@pytest.mark.parametrize("name", ["gtp", "less", "omp"])
def test_a_small_model_finds_the_rare_family_and_leaves_wrong_answers_and_noise(texts, name):
    run, kinds = texts
    chosen = kinds[run.select(name, 6).selection.indices]
    assert np.mean(chosen == "rare") >= 5 / 6
    assert not np.isin(chosen, ("wrong", "noise")).any()
