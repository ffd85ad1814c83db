"""What an inspection finds in the rows, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

from pursuit.inspection.prospects import Prediction, Proposal
from pursuit.report.text import counted


@dataclass(frozen=True)
class RefusalGroup:
    """Rows refused for one kind of reason (reasons that differ in their numbers only are one kind).

    Attributes:
        reason: of the first row, as it stands.
        count: rows.
        path, line: of the first; line is None when the whole file is meant.
    """

    reason: str
    count: int
    path: str
    line: int | None


@dataclass(frozen=True)
class SourceView:
    """One source: usable rows, their share of all usable rows, tokens kept, mean labelled tokens a row."""

    source: str
    rows: int
    share: float
    tokens: int
    mean_response_length: float


@dataclass(frozen=True)
class Lengths:
    """Tokens a row, after truncation.

    Attributes:
        minimum, median, p95, maximum, mean, total: over the usable rows.
        histogram: (shortest, longest, rows) of each bin; the bins' upper ends are powers of two.
    """

    minimum: int
    median: float
    p95: float
    maximum: int
    mean: float
    total: int
    histogram: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Truncation:
    """Usable rows that lose their end: how many, and how many tokens and response tokens they lose together."""

    rows: int = 0
    tokens: int = 0
    response_tokens: int = 0


@dataclass(frozen=True)
class Duplicates:
    """Rows that say the same.

    Attributes:
        groups: of two or more rows with the same text, white space aside.
        extra: rows that could go without losing a text.
        largest: rows of the largest group.
        first: file and line of that group's first row.
        prompts: prompts that occur with different responses.
        prompt_rows: rows with such a prompt.
    """

    groups: int = 0
    extra: int = 0
    largest: int = 0
    first: tuple[str, int] | None = None
    prompts: int = 0
    prompt_rows: int = 0


@dataclass(frozen=True)
class PoolView:
    """The rows of a pool or a target.

    Attributes:
        rows: all non-blank rows of all files; `usable` and `refused` of them.
        refused: may also count files that hold no rows.
        refusals: by kind of reason, the most frequent first; `first_refused` is the file and line of the first of all.
        lengths, response_lengths: None when no row is usable.
        straddling: response tokens that also hold characters outside the response.
    """

    rows: int
    usable: int
    refused: int
    refusals: tuple[RefusalGroup, ...]
    sources: tuple[SourceView, ...] = ()
    first_refused: tuple[str, int | None] | None = None
    lengths: Lengths | None = None
    response_lengths: Lengths | None = None
    truncation: Truncation = Truncation()
    straddling: int = 0
    duplicates: Duplicates = Duplicates()


@dataclass(frozen=True)
class TargetView:
    """The target, and the rows of the pool that stand in it too.

    Attributes:
        leaked: rows of the pool with the text of a target row.
        leaked_prompts: rows of the pool with the prompt of a target row, whatever the response.
    """

    pool: PoolView
    leaked: int = 0
    leaked_prompts: int = 0


@dataclass(frozen=True)
class ShownExample:
    """One row as the model will see it: its text in segments, each with a flag whether it is response."""

    source: str
    path: str
    line: int
    tokens: int
    response_tokens: int
    truncated: bool
    segments: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Inspection:
    """Everything that `pursuit inspect` shows.

    Attributes:
        model: id or path. max_length: tokens kept of a row.
        on_bad_row: the run's setting, "error" or "skip".
        target: None without one. prediction: None when no row is usable. proposal: None unless asked for.
        warnings: what is worth a second look, in sentences.
    """

    model: str
    max_length: int
    on_bad_row: str
    pool: PoolView
    target: TargetView | None
    examples: tuple[ShownExample, ...]
    prediction: Prediction | None = None
    proposal: Proposal | None = None
    warnings: tuple[str, ...] = ()

    @property
    def obstacle(self) -> str | None:
        """What `select` would stop at; None if it would choose."""
        if not self.pool.usable:
            return "select would stop: no row of the pool can be used."
        if self.on_bad_row == "error":
            for name, pool in (("pool", self.pool), ("target", self.target.pool if self.target else None)):
                if pool is not None and pool.first_refused is not None:
                    path, line = pool.first_refused
                    place = path if line is None else f"{path}, line {line:,}"
                    return (
                        f"select would stop at the first of {counted(pool.refused, 'refused row')} of the {name} "
                        f"({place}). Mend them, or let it go on without them: --on-bad-row skip."
                    )
        if self.target is not None and not self.target.pool.usable:
            return "select would stop when it needs the target: no row of it can be used."
        return None

    @property
    def outlook(self) -> str:
        """What `select` would do with these rows."""
        if (obstacle := self.obstacle) is not None:
            return obstacle
        without = f", without the {self.pool.refused:,} refused" if self.pool.refused else ""
        return f"select would choose from {counted(self.pool.usable, 'row')}{without}."
