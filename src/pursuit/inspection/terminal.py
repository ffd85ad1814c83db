"""An inspection on the terminal. Texts of the data are never read as markup, and cannot steer the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from pursuit.inspection.data import (
    Inspection,
    Lengths,
    PoolView,
    RefusalGroup,
    ShownExample,
    TargetView,
)
from pursuit.inspection.prospects import Prediction, Proposal
from pursuit.report.text import about, count, counted, duration, money, number, percent, shorten, visible

RESPONSE = "black on green"  # a background, so that white space shows
OPEN, CLOSE = "⟦", "⟧"  # around response tokens where there are no colours
SEGMENT = 1200  # characters shown of a segment, half from its start and half from its end
MOST_SOURCES, MOST_REASONS = 12, 30
BAR = 30  # characters of the longest bar
_REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069\u2028\u2029]")


def print_inspection(inspection: Inspection, console: Console | None = None) -> None:
    """Everything: examples, counts, predictions, and what `select` would do."""
    console = console or Console()
    print_findings(inspection, console)
    print_prospects(inspection, console)


def print_findings(inspection: Inspection, console: Console) -> None:
    """What the data are: known before the model is loaded."""
    print_examples(inspection.examples, console)
    console.print(Group(*_pool_parts(inspection)))
    if inspection.target is not None:
        console.print(Group(*_target_parts(inspection.target, inspection.pool.usable)))


def print_prospects(
    inspection: Inspection, console: Console, price_per_hour: float | None = None, currency: str = ""
) -> None:
    """What the run will take, what is worth a second look, and what `select` would do."""
    if inspection.proposal is not None:
        console.print(_heading("What is proposed for the features"))
        console.print(Group(*map(Text, _proposed(inspection.proposal))))
    if inspection.prediction is not None:
        console.print(_heading("What it will take" + (", as proposed" if inspection.proposal else "")))
        console.print(_prediction_table(inspection.prediction, price_per_hour, currency))
        console.print(Group(*map(Text, _how_measured(inspection.prediction))))
    for warning in inspection.warnings:
        console.print(Text(f"Worth a look: {safe(warning)}", style="yellow"))
    console.print(Text(f"\n{safe(inspection.outlook)}", style="bold"))


def print_examples(examples: Sequence[ShownExample], console: Console) -> None:
    """Rendered rows with the response tokens marked: by a background, or by brackets where there are no colours."""
    if not examples:
        return
    coloured = console.color_system is not None and not console.no_color
    legend = Text("Response tokens, which the loss is over, are ")
    legend.append("marked like this" if coloured else f"in {OPEN} {CLOSE}", style=RESPONSE if coloured else "")
    console.print(_heading("What will be learnt from"))
    console.print(legend.append("."))
    for example in examples:
        cut = ", cut off at its end" if example.truncated else ""
        console.print(
            Text(
                f"\n{safe(example.source)} · {safe(example.path)}, line {example.line:,} · {example.tokens:,} tokens, "
                f"{example.response_tokens:,} response{cut}",
                style="dim",
            )
        )  # fmt: skip
        # without colours it may be a file: the text stays unwrapped, as it is
        console.print(marked(example.segments, coloured), soft_wrap=not coloured, overflow="fold" if coloured else None)


def marked(segments: Sequence[tuple[str, bool]], coloured: bool) -> Text:
    """The segments as one text; the middle of a long one is left out."""
    text = Text()
    for content, response in segments:
        shown = safe(_middle_out(content))
        if coloured:
            text.append(shown, style=RESPONSE if response else "")
            continue
        shown = shown.replace(OPEN, "[[").replace(CLOSE, "]]")  # the data cannot pass for a mark
        text.append(f"{OPEN}{shown}{CLOSE}" if response else shown)
    return text


def safe(text: str) -> str:
    """Text of the data without anything that moves the cursor, colours, or reorders what is printed."""
    return _REORDERING.sub("\N{REPLACEMENT CHARACTER}", visible(text))


def _middle_out(text: str) -> str:
    if len(text) <= SEGMENT:
        return text
    half = SEGMENT // 2
    return f"{text[:half]} … [{len(text) - 2 * half:,} characters not shown] … {text[-half:]}"


def _heading(title: str) -> Text:
    return Text(f"\n{title}", style="bold underline")


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, title in enumerate(titles):
        table.add_column(title, justify="right" if place else "left", overflow="fold")
    return table


def _pool_parts(inspection: Inspection) -> list[RenderableType]:
    pool = inspection.pool
    usable = f"{counted(pool.rows, 'row')}, {count(pool.usable)} usable, {count(pool.refused)} refused"
    parts: list[RenderableType] = [_heading("The pool"), Text(usable)]
    if pool.refusals:
        parts.append(_refusal_table(pool.refusals))
    if pool.lengths is None or pool.response_lengths is None:
        return parts
    table = _table("source", "rows", "share", "tokens", "mean response")
    for source in pool.sources[:MOST_SOURCES]:
        name = Text(safe(shorten(source.source, 40)))
        response = number(round(source.mean_response_length, 1))
        table.add_row(name, count(source.rows), percent(source.share), count(source.tokens), response)
    if rest := pool.sources[MOST_SOURCES:]:
        sums = count(sum(source.rows for source in rest)), percent(sum(source.share for source in rest))
        table.add_row(counted(len(rest), "smaller source"), *sums, count(sum(source.tokens for source in rest)), "")
    parts += [table, _length_table(pool.lengths, pool.response_lengths), _histogram(pool.lengths)]
    return parts + [Text(line) for line in _findings(pool, inspection.max_length)]


def _refusal_table(refusals: Sequence[RefusalGroup]) -> Table:
    table = _table("refused", "first", "why (of the first)")
    table.columns[0].justify, table.columns[1].justify, table.columns[2].justify = "right", "left", "left"
    for group in refusals[:MOST_REASONS]:
        place = group.path if group.line is None else f"{group.path}, line {group.line:,}"
        table.add_row(count(group.count), Text(safe(place)), Text(safe(shorten(group.reason, 300))))
    if rest := refusals[MOST_REASONS:]:
        table.add_row(count(sum(group.count for group in rest)), "", counted(len(rest), "more kind") + " of reasons")
    return table


def _length_table(total: Lengths, response: Lengths) -> Table:
    table = _table("tokens a row", "min", "median", "95%", "max", "mean", "sum")
    for name, lengths in (("whole row", total), ("response", response)):
        figures = (lengths.minimum, lengths.median, lengths.p95, lengths.maximum, round(lengths.mean, 1), lengths.total)
        table.add_row(name, *map(number, figures))
    return table


def _histogram(lengths: Lengths) -> Table:
    table = _table("tokens", "rows", "")
    table.columns[0].justify, table.columns[2].justify = "right", "left"
    most = max(rows for _, _, rows in lengths.histogram)
    for low, high, rows in lengths.histogram:
        bar = "█" * max(round(BAR * rows / most), 1 if rows else 0)
        table.add_row(f"{low:,}–{high:,}" if low < high else f"{high:,}", count(rows), bar)
    return table


def _findings(pool: PoolView, max_length: int) -> list[str]:
    cut, same = pool.truncation, pool.duplicates
    lines = [f"Truncated to {max_length:,} tokens: {counted(cut.rows, 'row')}"]
    if cut.rows:
        lines[0] += f", losing {counted(cut.tokens, 'token')}, {count(cut.response_tokens)} of them response"
    lines.append(f"Exact duplicates: {counted(same.extra, 'row')} more than texts")
    if same.first is not None:
        path, line = same.first
        lines[-1] += f", in {counted(same.groups, 'group')}; the largest has {counted(same.largest, 'row')}"
        lines[-1] += f" (first: {safe(path)}, line {line:,})"
    lines.append(f"Same prompt, other response: {counted(same.prompts, 'prompt')}, {counted(same.prompt_rows, 'row')}")
    lines.append(f"Tokens that hold both response and other text, counted as response: {count(pool.straddling)}")
    return lines


def _target_parts(target: TargetView, pool_rows: int) -> list[RenderableType]:
    pool = target.pool
    text = f"{counted(pool.rows, 'row')}, {count(pool.usable)} usable, {count(pool.refused)} refused"
    if pool.lengths is not None:
        text += f", {counted(pool.lengths.total, 'token')}"
    parts: list[RenderableType] = [_heading("The target"), Text(text)]
    if pool.refusals:
        parts.append(_refusal_table(pool.refusals))
    leaked = f"{count(target.leaked)} of {counted(pool_rows, 'pool row')} stand in the target"
    parts.append(Text(f"{leaked}; {count(target.leaked_prompts)} have the prompt of a target row."))
    return parts


def _prediction_table(found: Prediction, price_per_hour: float | None, currency: str) -> Table:
    table = _table("stage", "time", *([] if price_per_hour is None else ["money"]), "work")
    table.columns[-1].justify = "left"

    def add(stage: str, seconds: float | None, work: str, style: str = "") -> None:
        cost = [] if price_per_hour is None else [money(seconds, price_per_hour, currency) if seconds else ""]
        table.add_row(*(Text(cell, style=style) for cell in (stage, _time(seconds), *map(safe, cost), work)))

    steps = f"{counted(found.warmup_steps, 'step')}, {counted(found.warmup_examples, 'example')}"
    add("warm-up", found.warmup_seconds, f"{steps}, {count(found.warmup_tokens)} padded tokens")
    if found.directions_tokens:
        passes = f"{count(found.directions_tokens)} tokens, row by row, × {found.checkpoints} checkpoints"
        add("directions", found.directions_seconds, passes)
    passes = f"{count(found.feature_tokens)} padded tokens × {found.checkpoints} checkpoints"
    add("features", found.feature_seconds, passes)
    if found.target_tokens:
        passes = f"{count(found.target_tokens)} padded tokens × {found.checkpoints} checkpoints"
        add("target features", found.target_seconds, passes)
    if found.hours is not None:
        add("together", 3600 * found.hours, "", style="bold")
    return table


def _time(seconds: float | None) -> str:
    return "not measured" if seconds is None else duration(seconds)


def _how_measured(found: Prediction) -> list[str]:
    stored = found.store_bytes + found.target_store_bytes + found.directions_bytes
    lines = [
        f"Gradients: {count(found.parameters)} coordinates, kept as {count(found.dimension)} numbers a row and "
        "checkpoint.",
        f"Disk: {size(stored)} of features, {size(found.trajectory_bytes)} of checkpoints; "
        f"{size(found.free_bytes)} are free.",
        f"Memory: about {size(found.memory.bytes)} at the peak ({found.memory.how}).",
    ]
    operations = f"Operations: {about(found.feature_operations / 1e12)} T for the features of the pool"
    if found.feature_seconds:
        operations += f", {about(found.feature_operations / found.feature_seconds / 1e9)} G a second here"
    lines.append(operations + "; what other machines would take is in docs/scale.md.")
    if found.measurement is not None:
        timings = [timing for timing in (found.measurement.features, found.measurement.warmup) if timing is not None]
        batches, tokens = sum(timing.batches for timing in timings), sum(timing.tokens for timing in timings)
        seconds = sum(timing.seconds for timing in timings)
        lines.append(
            f"Measured on {found.measurement.device}: {batches} batches of this pool at step 0, {count(tokens)} padded "
            f"tokens in {duration(seconds)}. Not counted: loading, encoding, writing, and the choosing itself."
        )
    return lines


def _proposed(found: Proposal) -> list[str]:
    by_dimension = ", ".join(f"d={d}: {value:.3f}" for d, value in found.agreement.items())
    by_code = ", ".join(
        f"{code} {share:.3f}" if share < 10 else f"{code} more than 10" for code, share in found.code_error.items()
    )
    by_batch = ", ".join(f"{size}: {rate:,.0f}" for size, rate in found.rates.items())
    flags = " ".join(f"--features.{name.replace('_', '-')} {value}" for name, value in found.settings().items())
    lines = [
        f"Agreement of the rows' inner products between two projection seeds, {found.rows} rows: {by_dimension}.",
        f"Error that a stored type adds, as a share of the projection's at d={found.dimension}: {by_code}.",
        f"Padded tokens a second, by tokens a batch: {by_batch}.",
        f"Proposed: {flags}",
    ]
    if found.needs_new_run:
        lines.append(
            "This run has begun with other features and keeps them: --features.dimension and --features.dtype need a "
            "new run folder, --features.batch-tokens does not."
        )
    return lines


def size(number_of_bytes: float) -> str:
    """Bytes in the unit a person would use, decimal as disks are sold."""
    for unit, divisor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number_of_bytes >= divisor:
            return f"{about(number_of_bytes / divisor)} {unit}"
    return f"{about(number_of_bytes / 1e3)} kB"
