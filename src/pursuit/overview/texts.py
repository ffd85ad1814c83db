"""Texts of pool rows, rendered once and cut to what a page needs."""

from __future__ import annotations

import re
from collections.abc import Callable

from pursuit.report import Segments

Render = Callable[[int], Segments]  # the text of a row

SHORT = 120  # characters of either side of a short text
TURN = re.compile(  # where a turn begins, in the templates of the common families
    r"(?:<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>|<\|)(?:system|user|assistant|model|tool)"
    r"(?:<\|end_header_id\|>|\|>)?\s|\[/?INST\]"
)
MARKS = re.compile(r"<\|[^|<>]{0,40}\|>|</?s>|<end_of_turn>")


class Texts:
    """The rows of a pool as text; without a way to render them, their numbers.

    Args:
        render: text of a row as segments (text, is response), or None.
        name: what a row is called where there is no text.
    """

    def __init__(self, render: Render | None, name: str = "row") -> None:
        self.render, self.name = render, name
        self._short: dict[int, str] = {}

    def segments(self, index: int) -> Segments:
        """The whole text; nothing where there is none."""
        return [] if self.render is None else self.render(index)

    def whole(self, index: int) -> str:
        """The whole text in one piece."""
        return f"{self.name} {index}" if self.render is None else "".join(part for part, _ in self.segments(index))

    def short(self, index: int) -> str:
        """The end of the prompt and the beginning of the response: they tell rows apart better than their beginning."""
        if self.render is None:
            return f"{self.name} {index}"
        if index not in self._short:
            self._short[index] = shortened(self.segments(index))
        return self._short[index]


def shortened(segments: Segments) -> str:
    """`… end of the last prompt → beginning of the response …`, without a template's marks."""
    first = next((place for place, (_, response) in enumerate(segments) if response), 0)
    turns = TURN.split("".join(text for text, _ in segments[:first]))
    prompt = next((clean for turn in reversed(turns) if (clean := _clean(turn))), "")
    response = _clean("".join(text for text, flag in segments[first:] if flag or not prompt))
    if not prompt:
        return response if len(response) <= 2 * SHORT else response[: 2 * SHORT] + " …"
    start = prompt if len(prompt) <= SHORT else "… " + prompt[-SHORT:]
    return f"{start} → {response if len(response) <= SHORT else response[:SHORT] + ' …'}"


def _clean(text: str) -> str:
    return " ".join(MARKS.sub(" ", text).split())


def response_of(segments: Segments) -> str:
    """What is learnt from; the whole text where nothing is marked."""
    learnt = MARKS.sub(" ", "".join(text for text, response in segments if response))
    return learnt if learnt.strip() else MARKS.sub(" ", "".join(text for text, _ in segments))


def quoted(text: str, limit: int = 100) -> str:
    """A short text in quotation marks."""
    return f"“{text if len(text) <= limit else text[: limit - 1].rstrip() + '…'}”"
