"""The overview of the report for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pursuit.report.data import ReportData
from pursuit.report.observations import observations
from pursuit.report.summary import distributions, known_cost, saving, source_shares, token_share
from pursuit.report.text import about, count, duration, known, money, number, percent, shorten, times, visible
from pursuit.report.weights import weight_summary

MOST_SOURCES = 8
COST_NAMES = {
    "selection_seconds": "selection",
    "subset_training_seconds": "training on the chosen",
    "full_training_seconds": "training on the whole pool",
}


def terminal_summary(data: ReportData) -> RenderableType:
    """What was chosen, in a few lines, as a rich renderable; texts of the data are never read as markup."""
    shares, found = source_shares(data), distributions(data)
    chosen = data.chosen.num_rows
    share = chosen / data.pool_size if data.pool_size else float("nan")
    head = Text()
    head.append(f"{count(chosen)} of {count(data.pool_size)} examples", style="bold")
    tokens = token_share(data)
    of_tokens = "" if tokens is None else f", {percent(tokens)} of the tokens"
    head.append(f" ({percent(share)}{of_tokens}) chosen by ")
    head.append(visible(data.method), style="bold")
    parts: list[RenderableType] = [head]

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("", "pool", "chosen", "ratio"):
        table.add_column(title, justify="right" if title else "left", overflow="fold")
    for item in shares[:MOST_SOURCES]:
        name = Text(visible(shorten(item.source or "(no source)", 40)))
        ratio = times(item.factor) if item.pool else ""
        table.add_row(name, percent(item.pool_share), percent(item.chosen_share), ratio)
    if len(shares) > MOST_SOURCES:
        rest = shares[MOST_SOURCES:]
        sums = (sum(item.pool_share for item in rest), sum(item.chosen_share for item in rest))
        table.add_row(f"{len(rest)} smaller sources", *map(percent, sums), "")
    table.add_section()
    for quantity in found:
        pool, picked = quantity.pool.median, quantity.chosen.median
        ratio = times(picked / pool) if pool > 0 and known(picked) else ""
        table.add_row(f"median {quantity.title.lower()}", number(pool), number(picked), ratio)
    parts.append(table)

    parts += [Text(visible(line)) for line in _lines(data)]
    parts += [Text(f"Warning: {visible(text)}", style="yellow") for text in data.warnings]
    parts += [Text(f"Worth a look: {visible(text)}") for text in observations(data, shares, found, most=3)]
    return Group(*parts)


def _lines(data: ReportData) -> list[str]:
    lines = []
    if data.examples or data.near_duplicates:
        pairs = len(data.near_duplicates)
        lines.append(f"Near-duplicates among the chosen: {count(pairs)} {'pair' if pairs == 1 else 'pairs'}")
    if data.refused_total:
        lines.append(f"Rows refused: {count(data.refused_total)}")
    ours = next(((name, curve) for name, curve in data.residuals.items() if len(curve)), None)
    if ours is not None:
        # further passes start anew: the last entry is how near the last of them came, and not the joint choice
        lines.append(f"Smallest residual: {number(min(ours[1]))} of the goal")
    weights = weight_summary(data)
    if weights is not None:
        alike = round(weights.effective)
        lines.append(f"Weights: they count like {count(alike)} equal one{'s' * (alike != 1)}")
    price = data.price_per_hour
    costs = [
        f"{COST_NAMES[key]} {duration(seconds)}" + (f" ({money(seconds, price, data.currency)})" if price else "")
        for key, seconds in known_cost(data).items()
    ]
    ratio = saving(data)
    if costs:
        less = f" ({about(ratio)} times less in all)" if ratio and ratio >= 1.05 else ""
        lines.append("Time: " + ", ".join(costs) + less)
    return lines
