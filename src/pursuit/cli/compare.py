"""`pursuit compare`: is it better than random, and as good as everything?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from pursuit.cli.app import Flags, Price, app, given, looked_at
from pursuit.compare.plan import Comparison, split_methods
from pursuit.finetune.recipe import FineTune

Flag = Annotated[bool, Parameter(negative="")]


@app.command
def compare(
    *, run: Path, methods: list[str], budgets: list[str], evaluation: Annotated[list[str], Parameter(name="--eval")],
    out: Path, seeds: int = 3, metrics: list[str] | None = None, scorer: list[str] | None = None,
    player: list[str] | None = None, equal: Literal["steps", "epochs"] = "steps", steps: int | None = None,
    epochs: int = FineTune.epochs, learning_rate: float = FineTune.learning_rate, batch_size: int = FineTune.batch_size,
    micro_batch_tokens: int | None = None, optimizer: list[str] | None = None,
    schedule: list[str] | None = None, weighted: Flag = False, no_full: Flag = False, all_weights: Flag = False,
    train_model: str | None = None, train_template: str | None = None, keep_models: Flag = False,
    price_per_hour: Price = None, currency: str = "", settings: Flags = None,
) -> None:  # fmt: skip
    """Fine-tune on what each method chooses, on random rows and on the whole pool; score each on held-out rows.

    ```
    pursuit compare --run runs/x --methods tagcos,gtp,random --budgets 0.5%,5% --eval heldout.jsonl --out compare/
    ```

    Ends with a table (mean and 95% interval over seeds, difference to random at the same budget paired by seed, share
    of the whole pool's gain that is kept, seconds), `runs.parquet` and `comparison.html`. What is finished is not done
    again; killed, the same command goes on. With --engine ray trainings run side by side.

    Args:
        run: Run folder with the pool (and the target, where methods need one); its model is trained.
        methods: Commas between them; parameters in brackets: "tagcos(clusters=50),gtp". random always joins.
        budgets: 0.5%,5% or numbers of rows.
        evaluation: Held-out rows, files as for a pool; name=path names a family. Rows of the pool among them flatter.
        out: Folder for the results.
        seeds: Trainings of each: selection, adapter, order and dropout differ.
        metrics: loss, exact, choice; loss alone if not given.
        scorer: Functions of one's own, package.module:function, see `pursuit evaluate --help`.
        player: Functions that let the model play, likewise.
        equal: Train each subset for the same number of optimizer steps, or go over each equally often.
        steps: Optimizer steps of each training; those of --epochs over the largest subset if not given.
        epochs: How often each row is trained on, with --equal epochs.
        learning_rate: Peak learning rate.
        batch_size: Rows an optimizer step.
        micro_batch_tokens: Padded tokens in memory at once; 2048 on a CPU and 16384 on a GPU if not given.
        optimizer: One or several of transformers' optimizers: does the subset survive another one?
        schedule: One or several learning-rate schedules, likewise.
        weighted: Train with the weights of the selections.
        no_full: Leave out training on the whole pool.
        all_weights: Train all weights of the model instead of a LoRA.
        train_model: Train this model on the subsets that the run's model chose.
        train_template: Chat template of --train-model (as --chat-template of a run); its own if not given.
        keep_models: Keep the trained weights.
        price_per_hour: Of the machine: shows money beside time.
        currency: Of the price.
    """
    values = looked_at(given(settings), evaluation)
    from pursuit.cli.commands_compare import run_compare

    def parts(values: list[str] | None) -> list[str]:
        return [part.strip() for value in values or () for part in value.split(",") if part.strip()]

    train = FineTune(
        epochs=epochs, max_steps=steps, learning_rate=learning_rate, batch_size=batch_size,
        micro_batch_tokens=micro_batch_tokens, weighted=weighted,
    )  # fmt: skip
    comparison = Comparison(
        methods=split_methods(methods), budgets=parts(budgets), evaluation=evaluation, seeds=seeds,
        metrics=parts(metrics) or ([] if scorer or player else ["loss"]), scorers=scorer or (), players=player or (),
        train=train, equal=equal, optimizers=parts(optimizer), schedules=parts(schedule), full=not no_full,
        train_model=train_model, train_template=train_template, all_weights=all_weights, keep_models=keep_models,
    )  # fmt: skip
    run_compare(run, comparison, out, values, price_per_hour, currency)
