"""Chosen rows in the form that each trainer reads, its own settings named so that it learns from the same tokens.

| format | a line or row holds |
|---|---|
| trl | `prompt` and `completion` (lists of turns), or `messages`, or `text` |
| llama-factory | `conversations` (from, value) and `system`, or `text`; an entry in dataset_info.json beside the file |
| axolotl | `messages` (role, content, train), or `text` |
| messages | `messages` (role, content; weight 0 at assistant turns that are not learnt from), or `text` |
| parquet | `messages` (role, content, train), `text`, `rank`, `path`, `line` |

and always `source` and `weight`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from pursuit.errors import DataError, SettingsError
from pursuit.files import atomic_path, write_json
from pursuit.pool import Example, Message

TrainerFormat = Literal["trl", "llama-factory", "axolotl", "messages", "parquet"]
TrainOn = Literal["all", "last"]
Row = dict[str, Any]
Rows = tuple[list[Row], tuple[str, ...]]  # and what to set in the trainer
UNUSED_WEIGHT = "does not use the column weight: rows count the same unless your own trainer multiplies the loss by it"
LLAMA_CHATS = {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system"}}
LLAMA_TEXTS = {"columns": {"prompt": "text"}}
LLAMA_ROLES = {"user": "human", "assistant": "gpt", "tool": "observation"}


@dataclass(frozen=True)
class Exported:
    """A file for a trainer.

    Attributes:
        path: the file.
        count: rows in it.
        notes: what to set in the trainer, and what it leaves unused.
    """

    path: Path
    count: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Turn:
    message: Message
    learnt: bool


@dataclass(frozen=True)
class _Chat:
    """A conversation and, of each turn, whether it is learnt from."""

    example: Example
    turns: tuple[_Turn, ...]

    @property
    def upto_last_learnt(self) -> tuple[_Turn, ...]:
        """Without what follows the last learnt turn: no learnt token depends on it."""
        return self.turns[: max(place for place, turn in enumerate(self.turns) if turn.learnt) + 1]

    @property
    def learns_all(self) -> bool:
        """All assistant turns are learnt from."""
        return all(turn.learnt for turn in self.upto_last_learnt if turn.message.role == "assistant")

    @property
    def learns_last_only(self) -> bool:
        """One turn is learnt from."""
        return sum(turn.learnt for turn in self.turns) == 1


def write_for_trainer(
    examples: Sequence[Example], weights: Sequence[float], to: TrainerFormat, out: str | Path,
    *, train_on: TrainOn = "all",
) -> Exported:  # fmt: skip
    """Write rows, in the order given, with their weights, atomically.

    Args:
        examples: the rows; all conversations or all plain text, but for `parquet`, which takes both.
        weights: one number for each, written as it is to the column `weight`.
        to: see the head of this module.
        out: .jsonl, or .parquet for `parquet`.
        train_on: as the rows were learnt from: "all" assistant turns or the "last".

    Raises:
        SettingsError: an unknown format, or another ending of the file's name.
        DataError: a row that the trainer would drop, or would learn from otherwise; it is named.
    """
    path = check_out(to, out)
    if len(weights) != len(examples) or not examples:
        raise DataError(f"{len(weights)} weights for {len(examples)} rows: there must be one for each, and a row.")
    chats = [_chat(example, train_on) for example in examples if example.messages is not None]
    texts = [example for example in examples if example.messages is None]
    if chats and texts and to != "parquet":
        raise DataError(
            f"a file for {to} holds conversations or plain text, not both: this row is text, and {len(chats)} of "
            f"{len(examples)} are conversations. Export them apart, or --to parquet.", path=texts[0].path,
            line=texts[0].line,
        )  # fmt: skip
    if to == "parquet":
        _write_table(chats, examples, weights, path)
        return Exported(path, len(examples), ())
    rows, notes = _texts(to, texts, path) if texts else _FORMS[to](chats, path)
    information = _dataset_info(path, LLAMA_TEXTS if texts else LLAMA_CHATS) if to == "llama-factory" else None
    _write_lines(rows, examples, weights, path)
    if information:
        write_json(*information)
    return Exported(path, len(examples), notes)


def check_out(to: str, out: str | Path) -> Path:
    """`out` as a Path, or a SettingsError if the format is unknown or the name does not end as it should."""
    if to not in get_args(TrainerFormat):
        raise SettingsError(f"--to {to}: there is no such format. Choose from {', '.join(get_args(TrainerFormat))}.")
    ending = ".parquet" if to == "parquet" else ".jsonl"
    if not str(out).endswith(ending):
        raise SettingsError(f"{out}: --to {to} writes {ending}; name the file so.")
    return Path(out)


def _chat(example: Example, train_on: TrainOn) -> _Chat:
    messages = example.messages or ()
    learnt = [place for place, message in enumerate(messages) if message.role == "assistant" and message.train]
    learnt = learnt[-1:] if train_on == "last" else learnt
    return _Chat(example, tuple(_Turn(message, place in learnt) for place, message in enumerate(messages)))


def _trl(chats: Sequence[_Chat], path: Path) -> Rows:
    unused = f"TRL's SFTTrainer {UNUSED_WEIGHT}."
    if all(chat.learns_last_only and len(chat.upto_last_learnt) > 1 for chat in chats):
        rows = [
            {"prompt": _plain(chat.upto_last_learnt[:-1]), "completion": _plain(chat.upto_last_learnt[-1:])}
            for chat in chats
        ]
        return rows, (
            "Leave completion_only_loss as it is: with prompt and completion only the completion counts.",
            unused,
        )
    for chat in chats:
        if not chat.learns_all:
            raise _refuse(
                chat, "has assistant turns that are not learnt from, and others have several that are; TRL cannot tell "
                "them apart. Export --to axolotl, or choose with --train-on last",
            )  # fmt: skip
    rows = [{"messages": _plain(chat.upto_last_learnt)} for chat in chats]
    return rows, ("Set assistant_only_loss=True in SFTConfig: otherwise the prompts are learnt from, too.", unused)


def _llama_factory(chats: Sequence[_Chat], path: Path) -> Rows:
    rows = [_llama_row(chat) for chat in chats]
    notes = [f"Set dataset: {path.stem} and dataset_dir: {path.parent}", f"LLaMA-Factory {UNUSED_WEIGHT}."]
    if not all(chat.learns_all for chat in chats):
        for chat in chats:
            if not chat.learns_last_only:
                raise _refuse(
                    chat, "has several turns that are learnt from, and others have turns that are not; LLaMA-Factory "
                    "cannot tell them apart. Export --to axolotl, or choose with --train-on last",
                )  # fmt: skip
        notes.insert(0, "Set mask_history: true: only the last turn of a row is learnt from.")
    return rows, tuple(notes)


def _llama_row(chat: _Chat) -> Row:
    turns = list(chat.upto_last_learnt)
    system = turns.pop(0).message.content if turns[0].message.role == "system" else ""
    for place, turn in enumerate(turns):
        wanted = ("assistant",) if place % 2 else ("user", "tool")
        if turn.message.role not in wanted:
            raise _refuse(
                chat, f"LLaMA-Factory drops it: after the system turn, user (or tool) and assistant must take turns, "
                f"but turn {place + 1} is {turn.message.role}",
            )  # fmt: skip
    said = [{"from": LLAMA_ROLES[turn.message.role], "value": turn.message.content} for turn in turns]
    return {"conversations": said, "system": system}


def _dataset_info(path: Path, entry: Row) -> tuple[Path, Row]:
    """LLaMA-Factory's list of data sets beside the file, with this one added, and where it is to be written."""
    place = path.with_name("dataset_info.json")
    known: Any = {}
    if place.exists():
        try:
            known = json.loads(place.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"is not JSON ({error}); mend it, or export to another folder.", path=str(place)) from None
        if not isinstance(known, dict):
            raise DataError("must hold an object with an entry for each data set.", path=str(place))
    return place, {**known, path.stem: {"file_name": path.name, **entry}}


def _axolotl(chats: Sequence[_Chat], path: Path) -> Rows:
    entry = f"{{path: {path}, ds_type: json, type: chat_template, message_field_training: train}}"
    rows = [{"messages": _flagged(chat)} for chat in chats]
    return rows, (f"Put under datasets: {entry}", f"Axolotl {UNUSED_WEIGHT}.")


def _messages(chats: Sequence[_Chat], path: Path) -> Rows:
    rows = []
    for chat in chats:
        said: list[Row] = []
        for turn in chat.turns:
            skipped = turn.message.role == "assistant" and not turn.learnt
            said.append({**_plain([turn])[0], **({"weight": 0} if skipped else {})})
        rows.append({"messages": said})
    return rows, ()


def _texts(to: str, examples: Sequence[Example], path: Path) -> Rows:
    notes = {
        "trl": (f"TRL's SFTTrainer {UNUSED_WEIGHT}.",),
        "llama-factory": (
            f"Set stage: pt, dataset: {path.stem} and dataset_dir: {path.parent}",
            f"LLaMA-Factory {UNUSED_WEIGHT}.",
        ),
        "axolotl": (
            f"Put under datasets: {{path: {path}, ds_type: json, type: completion, field: text}}",
            f"Axolotl {UNUSED_WEIGHT}.",
        ),
    }
    return [{"text": example.text} for example in examples], notes.get(to, ())


def _write_table(chats: Sequence[_Chat], examples: Sequence[Example], weights: Sequence[float], path: Path) -> None:
    turn = pa.struct([("role", pa.string()), ("content", pa.string()), ("train", pa.bool_())])
    following = iter(chats)
    said = [None if example.messages is None else _flagged(next(following)) for example in examples]
    columns: dict[str, pa.Array] = {}
    if chats:
        columns["messages"] = pa.array(said, pa.list_(turn))
    if len(chats) < len(examples):
        columns["text"] = pa.array([example.text for example in examples], pa.string())
    columns |= {
        "weight": pa.array([float(weight) for weight in weights], pa.float64()),
        "source": pa.array([example.source for example in examples], pa.string()),
        "rank": pa.array(range(1, len(examples) + 1), pa.int64()),
        "path": pa.array([example.path for example in examples], pa.string()),
        "line": pa.array([example.line for example in examples], pa.int64()),
    }
    with atomic_path(path) as partial:
        pq.write_table(pa.table(columns), partial)


def _plain(turns: Sequence[_Turn]) -> list[Row]:
    return [{"role": turn.message.role, "content": turn.message.content} for turn in turns]


def _flagged(chat: _Chat) -> list[Row]:
    return [{**_plain([turn])[0], "train": turn.learnt} for turn in chat.turns]


def _write_lines(
    rows: Sequence[Mapping[str, Any]], examples: Sequence[Example], weights: Sequence[float], path: Path
) -> None:
    with atomic_path(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as out:
        for row, example, weight in zip(rows, examples, weights, strict=True):
            line = {**row, "source": example.source, "weight": float(weight)}
            out.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")


def _refuse(chat: _Chat, reason: str) -> DataError:
    return DataError(reason + ".", path=chat.example.path, line=chat.example.line)


_FORMS: dict[str, Callable[[Sequence[_Chat], Path], Rows]] = {
    "trl": _trl, "llama-factory": _llama_factory, "axolotl": _axolotl, "messages": _messages,
}  # fmt: skip
