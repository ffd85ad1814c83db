"""`pursuit report`: the page about a selection, anew and with more in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pursuit.cli.app import Price, app


@app.command
def report(
    *, run: Path, selection: str | None = None, agreement: Annotated[bool, Parameter(negative="")] = False,
    price_per_hour: Price = None, currency: str = "", out: Path | None = None,
) -> None:  # fmt: skip
    """Write the report of a selection again.

    ```
    pursuit report --run runs/x --selection tagcos --agreement
    ```

    Args:
        run: The run folder.
        selection: Its name in the folder `selections`, or its beginning (tagcos); not needed where there is only one.
        agreement: Run the method again with another seed, on single checkpoints, and on halves of the projection, and
            show how much of the choice stays: what depends on chance is little worth.
        price_per_hour: Of the machine: shows money beside time.
        currency: Of the price.
        out: The page, .html; beside the subset if not given.
    """
    from pursuit.cli.commands import write_report_again

    write_report_again(run, selection, agreement, price_per_hour, currency, out)
