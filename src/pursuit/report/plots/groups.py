"""Charts of groups: sources and clusters, each with its share of the pool and of the chosen."""

from __future__ import annotations

from collections.abc import Sequence

from pursuit.report.plots.base import Figure, axis, label, layout, rounded
from pursuit.report.summary import ClusterRow, SourceShare
from pursuit.report.text import count, percent

MOST_SOURCES = 20  # bars in one chart; the table has the rest


def sources(shares: Sequence[SourceShare]) -> Figure:
    """Share in the pool beside share among the chosen, a pair of bars for each source."""
    shown = list(shares[:MOST_SOURCES])
    rest = shares[MOST_SOURCES:]
    names = [label(share.source or "(no source)", 26) for share in shown]
    if rest:
        shown.append(
            SourceShare(
                "", sum(s.pool for s in rest), sum(s.chosen for s in rest),
                sum(s.pool_share for s in rest), sum(s.chosen_share for s in rest),
            )
        )  # fmt: skip
        names.append(f"{count(len(rest))} others")
    rows = list(range(len(shown)))

    def bars(name: str, values: list[float], counts: list[int]) -> Figure:
        return {
            "type": "bar", "orientation": "h", "name": name, "x": rounded(values), "y": rows,
            "marker": {"color": f"@{name}"}, "text": [percent(value) for value in values], "textposition": "outside",
            "textfont": {"color": f"@{name}-text"}, "cliponaxis": False, "hoverinfo": "text",
            "hovertext": [
                f"{title}<br>{name}: {count(amount)} ({percent(value)})"
                for title, amount, value in zip(names, counts, values, strict=True)
            ],
        }  # fmt: skip

    highest = max([share.pool_share for share in shown] + [share.chosen_share for share in shown])
    return {
        "data": [
            bars("pool", [share.pool_share for share in shown], [share.pool for share in shown]),
            bars("chosen", [share.chosen_share for share in shown], [share.chosen for share in shown]),
        ],
        "layout": layout(
            90 + (46 if len(shown) <= 8 else 36) * len(shown),
            axis("share of examples", range=[0, highest * 1.15], tickformat=".0%"),
            axis(tickvals=rows, ticktext=names, autorange="reversed", showgrid=False, color="@ink"),
            bargap=0.28, bargroupgap=0.06,
        ),
    }  # fmt: skip


def clusters(rows: Sequence[ClusterRow], pool_size: int, chosen: int) -> Figure:
    """Chosen against size, a point for each cluster, with the line of proportional choice."""
    sizes = [row.view.size for row in rows]
    largest = max(sizes)
    hover = [
        f"cluster {row.view.cluster}: {count(row.chosen)} of {count(row.view.size)} chosen"
        + (f"<br>mostly {label(row.top_source, 60)} ({percent(row.top_share)})" if row.top_source else "")
        for row in rows
    ]
    proportional = largest * chosen / max(1, pool_size)
    return {
        "data": [
            {"type": "scatter", "mode": "lines", "x": [0, largest], "y": [0, proportional], "hoverinfo": "skip",
             "line": {"color": "@pool", "width": 2}},
            {"type": "scatter", "mode": "markers", "x": sizes, "y": [row.chosen for row in rows], "text": hover,
             "hoverinfo": "text", "cliponaxis": False,
             "marker": {"color": "@chosen", "size": 8, "opacity": 0.75, "line": {"color": "@paper", "width": 1}}},
        ],
        "layout": layout(
            320, axis("size of the cluster in the pool", rangemode="tozero", tickformat=","),
            axis("chosen from it", rangemode="tozero", tickformat=","),
            annotations=[{
                "x": largest * 0.97, "y": proportional * 0.97, "text": "proportional to size", "showarrow": False,
                "xanchor": "right", "yanchor": "bottom", "font": {"color": "@pool-text"},
            }],
        ),
    }  # fmt: skip
