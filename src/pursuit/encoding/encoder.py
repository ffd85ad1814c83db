"""From an example to token ids and the mask of its response tokens."""

from __future__ import annotations

import hashlib
import itertools
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from pursuit.encoding.templates import ChatTemplate, Span, load_template, render_chat
from pursuit.errors import DataError, ModelError, SettingsError
from pursuit.pool.examples import BadRow, Example

TrainOn = Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as tokens.

    Attributes:
        input_ids: (L,) int32, L ≤ max_length.
        response: (L,) bool, the tokens whose cross-entropy is the example's loss; never the first token, which nothing
            predicts.
        full_length: tokens before truncation.
        truncated: full_length > max_length.
        straddling: response tokens that also hold characters outside the response (see `Encoder`).
        text_hash: digest of the whole rendered text with white space evened out, equal for exact duplicates.
        prompt_hash: the same of what stands before the first response; None for plain text.
    """

    input_ids: np.ndarray
    response: np.ndarray
    full_length: int
    truncated: bool
    straddling: int
    text_hash: str
    prompt_hash: str | None


@dataclass(frozen=True, slots=True)
class _Rendered:
    text: str
    spans: list[Span] | None  # None: plain text, all of it is response


class Encoder:
    """Turns examples into tokens and response masks (LESS, arXiv 2402.04333: loss over the response tokens only).

    Conversations are rendered through the chat template and tokenised once, as a whole and without further special
    tokens: the template writes its own. Requests and replies become a user and an assistant turn. Plain text gets what
    the tokenizer adds (a BOS at most once) and an EOS; all its tokens are response.

    A token that straddles the edge of a response (a merge of its first or last characters with the template's) counts
    as response [ours]: leaving it out would drop characters of the response from the loss. Turns after the last
    assistant turn to be learnt from cannot change the loss and are left out [ours]. Truncation keeps the first
    `max_length` tokens.

    Args:
        tokenizer: any of transformers; slow ones, which give no offsets, need responses that begin and end at a token's
            edge.
        max_length: tokens kept.
        chat_template: None for the tokenizer's own, "plain", "chatml", or a jinja file.
        train_on: "all" assistant turns, or the "last" one only.

    Raises:
        SettingsError: a value that cannot be accepted.
        ModelError: the chat template is not valid jinja.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 2048,
        chat_template: str | Path | None = None,
        train_on: TrainOn = "all",
    ) -> None:
        if max_length < 2:
            raise SettingsError(f"max_length: {max_length} is too small; at least 2 tokens are needed for a loss")
        if train_on not in ("all", "last"):
            raise SettingsError(f"train_on: {train_on!r} is not accepted; use 'all' or 'last'")
        self.tokenizer, self.max_length, self.train_on = tokenizer, max_length, train_on
        self.template: ChatTemplate | None = load_template(tokenizer, chat_template)

    def settings(self) -> dict[str, Any]:
        """What the tokens depend on, JSON-able: goes into a store's fingerprint."""
        template = "" if self.template is None else self.template.text
        return {
            "max_length": self.max_length,
            "train_on": self.train_on,
            "chat_template": _digest(template),
            "tokenizer": tokenizer_digest(self.tokenizer),
        }

    def encode(self, example: Example) -> Encoded:
        """Tokens and response mask of one example.

        Raises:
            DataError: the row cannot be used: the template refuses it, or no response token is left to learn from.
            ModelError: the row is a conversation and there is no chat template.
        """
        encoded = self.encode_batch([example])[0]
        if isinstance(encoded, DataError):
            raise encoded
        return encoded

    def encode_batch(self, examples: Sequence[Example]) -> list[Encoded | DataError]:
        """As `encode` for several examples; a row that cannot be used has its error in its place."""
        outcomes: list[Encoded | DataError | _Rendered] = []
        for example in examples:
            try:
                outcomes.append(self._render(example))
            except BadRow as error:
                outcomes.append(_row_error(example, error))
        rendered = [outcome for outcome in outcomes if isinstance(outcome, _Rendered)]
        tokens = iter(self._tokenise(rendered))
        results: list[Encoded | DataError] = []
        for example, outcome in zip(examples, outcomes, strict=True):
            if isinstance(outcome, _Rendered):
                ids, offsets = next(tokens)
                try:
                    results.append(self._finish(outcome, ids, offsets))
                except BadRow as error:
                    results.append(_row_error(example, error))
            else:
                results.append(outcome)
        return results

    def _render(self, example: Example) -> _Rendered:
        if example.messages is None:
            return _Rendered(example.text or "", None)
        if self.template is None:
            raise ModelError(
                f"{example.path}, line {example.line} is a conversation (or prompt and response), but the tokenizer "
                "has no chat template. Give one with --chat-template: 'plain' (for base models: prompt and response as "
                "they are), 'chatml', or a jinja file."
            )
        messages = example.messages
        learnt = [turn for turn, message in enumerate(messages) if message.role == "assistant" and message.train]
        wanted = learnt[-1:] if self.train_on == "last" else learnt
        text, spans = render_chat(self.template, messages[: learnt[-1] + 1], wanted)
        return _Rendered(text, spans)

    def _tokenise(self, rendered: list[_Rendered]) -> list[tuple[list[int], np.ndarray | None]]:
        """Ids and character offsets (L, 2) of each text; plain texts with the tokenizer's own special tokens."""
        results: list[tuple[list[int], np.ndarray | None]] = [([], None)] * len(rendered)
        for plain in (False, True):
            chosen = [place for place, item in enumerate(rendered) if (item.spans is None) == plain]
            if not chosen:
                continue
            output = self.tokenizer(
                [rendered[place].text for place in chosen],
                add_special_tokens=plain,
                return_offsets_mapping=self.tokenizer.is_fast,
                return_attention_mask=False,
                verbose=False,
            )
            offsets = output["offset_mapping"] if self.tokenizer.is_fast else [None] * len(chosen)
            for place, ids, pairs in zip(chosen, output["input_ids"], offsets, strict=True):
                results[place] = (ids, None if pairs is None else np.asarray(pairs, dtype=np.int64).reshape(-1, 2))
        return results

    def _finish(self, rendered: _Rendered, ids: list[int], offsets: np.ndarray | None) -> Encoded:
        straddling = 0
        if rendered.spans is None:
            ids = self._plain_ids(ids)
            response = np.ones(len(ids), dtype=bool)
        elif offsets is None:
            response = self._mask_by_prefixes(rendered.text, rendered.spans, ids)
        else:
            response, straddling = mask_by_offsets(rendered.spans, offsets)
        response[:1] = False  # nothing predicts the first token
        self._check_labels(response)
        prompt = None if rendered.spans is None else rendered.text[: rendered.spans[0][0]]
        return Encoded(
            input_ids=np.asarray(ids[: self.max_length], dtype=np.int32),
            response=response[: self.max_length],
            full_length=len(ids),
            truncated=len(ids) > self.max_length,
            straddling=straddling,
            text_hash=text_digest(rendered.text),
            prompt_hash=None if prompt is None else text_digest(prompt),
        )

    def _plain_ids(self, ids: list[int]) -> list[int]:
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        while len(ids) > 1 and ids[0] == ids[1] == bos:
            ids = ids[1:]
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]

    def _mask_by_prefixes(self, text: str, spans: list[Span], ids: list[int]) -> np.ndarray:
        """For tokenizers without offsets: the tokens of the text up to an edge must begin the whole."""
        response = np.zeros(len(ids), dtype=bool)
        for span in spans:
            edges = []
            for edge in span:
                prefix = self.tokenizer(text[:edge], add_special_tokens=False, verbose=False)["input_ids"]
                if ids[: len(prefix)] != prefix:
                    raise BadRow(
                        "the response does not begin and end at a token's edge, and this slow tokenizer gives no "
                        "offsets to tell its tokens; use the fast tokenizer"
                    )
                edges.append(len(prefix))
            response[edges[0] : edges[1]] = True
        return response

    def _check_labels(self, response: np.ndarray) -> None:
        labels = np.flatnonzero(response)
        if not labels.size:
            raise BadRow("its response has no token that can be learnt from")
        if labels[0] >= self.max_length:
            raise BadRow(
                f"its response is cut off: it starts at token {labels[0] + 1:,} of {len(response):,}, and only the "
                f"first {self.max_length:,} are kept. --max-length {len(response)} would hold the whole row, at least "
                f"{labels[0] + 1} is needed"
            )


def mask_by_offsets(spans: Sequence[Span], offsets: np.ndarray) -> tuple[np.ndarray, int]:
    """The tokens that hold a character of any span, and how many of them also hold one outside it.

    Args:
        spans: character ranges [start, end).
        offsets: (L, 2) character range of each token. An empty range is a token of white space that the tokenizer
            trimmed: its characters end there.
    """
    first, last = offsets[:, 0], offsets[:, 1]
    mask = np.zeros(len(offsets), dtype=bool)
    straddling = 0
    for start, end in spans:
        trimmed = (first == last) & (last > start) & (last <= end)
        inside = (first < last) & (first < end) & (last > start)
        straddling += int((inside & ((first < start) | (last > end))).sum())
        mask |= inside | trimmed
    return mask, straddling


def text_digest(text: str) -> str:
    """Digest of a text, the same for texts that differ in white space or Unicode composition only."""
    return _digest(" ".join(unicodedata.normalize("NFC", text).split()))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of everything that a tokenizer's output depends on (not of its padding or truncation state)."""
    if tokenizer.is_fast:
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        described = {key: value for key, value in described.items() if key not in ("padding", "truncation")}
    else:
        described = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    described["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return _digest(json.dumps(described, sort_keys=True))


def render_tokens(
    tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int] | np.ndarray, response: Sequence[bool] | np.ndarray
) -> list[tuple[str, bool]]:
    """The text of the tokens in segments, each with a flag: whether it is response. For display."""
    ids, flags = [int(token) for token in input_ids], np.asarray(response, dtype=bool)
    edges = [0, *(np.flatnonzero(flags[1:] != flags[:-1]) + 1).tolist(), len(ids)] if ids else []
    segments, shown = [], ""
    for start, end in itertools.pairwise(edges):
        # decoding all tokens so far keeps the spaces that some tokenizers drop at the start of what they decode
        upto, alone = (_decode(tokenizer, part) for part in (ids[:end], ids[start:end]))
        segments.append((upto[len(shown) :] if upto.startswith(shown) else alone, bool(flags[start])))
        shown = upto
    return segments


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _row_error(example: Example, error: BadRow) -> DataError:
    return DataError(str(error), path=example.path, line=example.line)
