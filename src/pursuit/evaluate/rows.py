"""The rows that a model is scored on: tokens for the loss, the prompt and reference of each, options where it has them.

Held in memory, as an evaluation reads each row several times and has thousands of them, not millions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from pursuit.encoding import Encoded, Encoder
from pursuit.encoding.encoder import TrainOn
from pursuit.errors import DataError
from pursuit.files import fingerprint
from pursuit.pool import Example, Message, Pool, Refusal, no_usable_rows

OPTION_FIELDS = ("options", "choices")
ANSWER_FIELD = "answer"


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One row to be scored on.

    Attributes:
        example: the row as the pool read it.
        encoded: its tokens and response mask.
        record: its fields, also those that pursuit has no use for.
        prompt: the turns before the last assistant turn; None for a plain text, which has no prompt.
        reference: the last assistant turn; for a plain text all of it.
        options: what to choose from, in order; None for a row without.
        answer: position in `options` of the right one.
    """

    example: Example
    encoded: Encoded
    record: Mapping[str, Any]
    prompt: tuple[Message, ...] | None
    reference: str
    options: tuple[str, ...] | None
    answer: int | None

    @property
    def source(self) -> str:
        """The family that it is averaged with."""
        return self.example.source


class EvalSet:
    """Rows to be scored on, and the encoder that made their tokens; `EncodedRows` for batches of the loss.

    Attributes:
        rows: (N) rows in the order of the files.
        encoder: with the chat template.
        lengths: (N,) int32 tokens of each row.
        refused: rows that were skipped (with on_bad_row="skip").
        digest: of what the scores depend on beside the model: rows, sources, template, tokenizer, truncation.
    """

    def __init__(self, rows: Sequence[EvalRow], encoder: Encoder, refused: Sequence[Refusal] = ()) -> None:
        self.rows, self.encoder, self.refused = list(rows), encoder, list(refused)
        self.lengths = np.array([len(row.encoded.input_ids) for row in rows], dtype=np.int32)
        content = hashlib.sha256()
        for row in rows:
            content.update(json.dumps([row.source, hashlib.sha256(row.example.raw).hexdigest()]).encode())
        self.digest = fingerprint({"rows": content.hexdigest(), **encoder.settings()})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, np.ndarray]:
        """(L,) token ids and (L,) response mask of one row."""
        encoded = self.rows[index].encoded
        return encoded.input_ids, encoded.response


def read_eval_set(
    data: Pool | str | Path | Sequence[str | Path],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 2048,
    chat_template: str | Path | None = None,
    train_on: TrainOn = "all",
) -> EvalSet:
    """Read and encode the rows to be scored on.

    Args:
        data: a pool, or paths to make one of; `on_bad_row` of the pool also rules rows that cannot be encoded.
        tokenizer: the model's.
        max_length: tokens kept of a row; the reference of a longer row is cut in the loss, and whole in generation.
        chat_template: as for `Encoder`.
        train_on: which assistant turns the loss is over; the others metrics are always about the last.

    Raises:
        DataError: no rows, a row that cannot be used, or options without a right answer; with file and line.
    """
    pool = data if isinstance(data, Pool) else Pool(data)
    encoder = Encoder(tokenizer, max_length=max_length, chat_template=chat_template, train_on=train_on)
    items = list(pool.stream())
    examples = [item for item in items if isinstance(item, Example)]
    refused = [item for item in items if isinstance(item, Refusal)]
    rows: list[EvalRow] = []
    for example, encoded in zip(examples, encoder.encode_batch(examples), strict=True):
        try:
            if isinstance(encoded, DataError):
                raise encoded
            rows.append(_row(example, encoded))
        except DataError as error:
            refusal = Refusal(example.path, example.line, error.reason, example.row)
            if pool.on_bad_row == "error":
                raise refusal.as_error() from error
            refused.append(refusal)
    if not rows:
        raise no_usable_rows(refused)
    return EvalSet(rows, encoder, refused)


def _row(example: Example, encoded: Encoded) -> EvalRow:
    record = json.loads(example.raw)
    if example.messages is None:
        return EvalRow(example, encoded, record, None, example.text or "", None, None)
    turn = max(i for i, message in enumerate(example.messages) if message.role == "assistant" and message.train)
    reference = example.messages[turn].content
    options = _options(example, record)
    answer = None if options is None else _answer(example, record, options, reference)
    return EvalRow(example, encoded, record, example.messages[:turn], reference, options, answer)


def _options(example: Example, record: Mapping[str, Any]) -> tuple[str, ...] | None:
    name = next((name for name in OPTION_FIELDS if record.get(name)), None)
    if name is None:
        return None
    options = record[name]
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise _error(example, f"field {name!r} must be a list of texts, none of them empty.")
    if len(options) < 2 or len(set(options)) < len(options):
        raise _error(example, f"field {name!r} must hold at least two options, no two of them the same.")
    return tuple(options)


def _answer(example: Example, record: Mapping[str, Any], options: tuple[str, ...], reference: str) -> int:
    """The right option's position: named by `answer` (a position or the text), else the option that is the response."""
    given = record.get(ANSWER_FIELD, reference)
    if isinstance(given, int) and not isinstance(given, bool):
        if 0 <= given < len(options):
            return given
        raise _error(example, f"answer {given} is no position in its {len(options)} options; the first is 0.")
    stripped = [option.strip() for option in options]
    if isinstance(given, str) and given.strip() in stripped:
        return stripped.index(given.strip())
    what = f"field {ANSWER_FIELD!r}" if ANSWER_FIELD in record else "the response"
    raise _error(example, f"{what} is {given!r}, which is none of its options: {', '.join(map(repr, options))}.")


def _error(example: Example, reason: str) -> DataError:
    return DataError(reason, path=example.path, line=example.line)
