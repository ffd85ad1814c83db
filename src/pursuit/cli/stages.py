"""`pursuit inspect | warmup | extract | status`: looking first, and the stages before a selection one by one."""

from __future__ import annotations

import sys
from pathlib import Path

from pursuit.cli.app import Config, Flags, Folder, Price, app, resolve


@app.command
def inspect(*, run: Folder = None, config: Config = None, examples: int = 3, measure: bool = True,
            autotune: bool = False, price_per_hour: Price = None, currency: str = "",
            settings: Flags = None) -> None:  # fmt: skip
    """Show what will be learnt from, before any heavy work.

    Rendered examples with the response tokens marked, lengths, truncation, duplicates, sources, refused rows, and the
    hours, gigabytes and memory that the run will take. Ends with status 1 if select would stop at these rows.

    Args:
        examples: How many rendered examples to show.
        measure: Time a few batches on the model to predict the hours.
        autotune: Also try projections, stored types and batch sizes on up to 200 rows, and propose settings (a minute).
        price_per_hour: Of the machine: shows money beside time.
        currency: Of the price.
    """
    folder, values = resolve(run, config, settings, needs_run=False)
    from pursuit.inspection import inspect_pool

    if inspect_pool(folder, values, examples, measure, autotune, price_per_hour, currency).obstacle is not None:
        sys.exit(1)


@app.command
def warmup(*, run: Folder = None, config: Config = None, settings: Flags = None) -> None:
    """The first stage alone: train briefly on a random part of the pool and keep the checkpoints."""
    folder, values = resolve(run, config, settings)
    from pursuit.cli.commands import warm_up

    warm_up(folder, values)


@app.command
def extract(*, run: Folder = None, config: Config = None, append: list[str] | None = None, shard: str | None = None,
            settings: Flags = None) -> None:  # fmt: skip
    """The second stage alone: the gradient features of every row at every checkpoint.

    As independent jobs, in any order, on any machines that see the run folder (after `pursuit warmup`):

        pursuit extract --run runs/x --shard 1/16 … --shard 16/16
        pursuit status --run runs/x --of 16

    Args:
        append: More files, whose rows join the run for good; only their gradients are computed.
        shard: Do only this job's part: 3/16 is the third of sixteen.
    """
    folder, values = resolve(run, config, settings)
    from pursuit.cli.commands import extract_features

    extract_features(folder, values, append, shard)


@app.command
def status(*, run: Path, of: int | None = None, verify: bool = False) -> None:
    """What stands in a run folder and what is missing; also while jobs are working in it.

    Args:
        run: The run folder.
        of: How many jobs share the extraction: also tells which have to be started again.
        verify: Read every shard, and the directions, and compare their digests.
    """
    from rich.console import Console

    from pursuit.run.status import status as look
    from pursuit.run.status import table

    Console().print(table(look(run, of=of, verify=verify)))
