"""`pursuit inspect | warmup | extract`: looking first, and the stages before a selection one by one."""

from __future__ import annotations

from pursuit.cli.app import Config, Flags, Folder, app, resolve


@app.command
def inspect(*, run: Folder = None, config: Config = None, examples: int = 3, measure: bool = True,
            settings: Flags = None) -> None:  # fmt: skip
    """Show what will be learnt from, before any heavy work.

    Rendered examples with the response tokens marked, lengths, truncation, duplicates, sources, refused rows, and the
    hours, gigabytes and memory that the run will take.

    Args:
        examples: How many rendered examples to show.
        measure: Time a few batches on the model to predict the hours.
    """
    from pursuit.inspection import inspect_pool

    folder, values = resolve(run, config, settings, needs_run=False)
    inspect_pool(folder, values, examples, measure)


@app.command
def warmup(*, run: Folder = None, config: Config = None, settings: Flags = None) -> None:
    """The first stage alone: train briefly on a random part of the pool and keep the checkpoints."""
    from pursuit.commands import stage

    stage("warmup", *resolve(run, config, settings))


@app.command
def extract(*, run: Folder = None, config: Config = None, settings: Flags = None) -> None:
    """The second stage alone: the gradient features of every row at every checkpoint."""
    from pursuit.commands import stage

    stage("extract", *resolve(run, config, settings))
