"""What a pool yields: examples, and the rows it had to refuse."""

from __future__ import annotations

from dataclasses import dataclass

from pursuit.errors import DataError

LEAVE_OUT = "--on-bad-row skip leaves such rows out and lists them; `pursuit inspect` counts them by kind of reason."


class BadRow(Exception):
    """One row cannot be used; the pool adds file and line and makes it a DataError or a Refusal."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        content: its text.
        train: whether an assistant turn is learnt from (False for assistant turns inside a `prompt` list, and for
            turns whose row says `"weight": 0`). Means nothing for other roles.
    """

    role: str
    content: str
    train: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """One usable row.

    Attributes:
        row: 0-based ordinal over all non-blank rows of all files, good or bad.
        source: the name of the data set it belongs to.
        path: the file it was read from, as the user wrote it.
        line: 1-based line of the file where the row starts (for Parquet and `datasets`: 1-based row of the file; in a
            JSON array the next number, where the row starts on the line of the row before).
        messages: the conversation, or None for a plain-text row.
        text: the plain text, or None for a conversation.
        raw: the row's own bytes without the line ending (JSONL), or the row as JSON (other formats).
    """

    row: int
    source: str
    path: str
    line: int
    messages: tuple[Message, ...] | None
    text: str | None
    raw: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was skipped, and why. `line` and `row` are None when a whole file is meant."""

    path: str
    line: int | None
    reason: str
    row: int | None = None

    def as_error(self) -> DataError:
        """Where no row may be left out."""
        return DataError(f"{self.reason}\n{LEAVE_OUT}", path=self.path, line=self.line)
