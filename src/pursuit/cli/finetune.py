"""`pursuit finetune`: training on what was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pursuit.cli.app import Flags, app, flags_of, given, looked_at, parse_parameters
from pursuit.finetune.recipe import USED, FineTune

if TYPE_CHECKING:
    UsedFlags = Flags
else:
    UsedFlags = flags_of(
        *USED, pool="Files to train on, instead of a subset; name=path names a source.",
        seed="Of the new adapter, the order of the rows and dropout.",
    )  # fmt: skip
Parameters = Annotated[
    list[str] | None, Parameter(name="--param", help="More parameters of --online: --param strata=5 schedule=anneal")
]


@app.command
def finetune(
    *, out: Path, run: Path | None = None, subset: Path | None = None, selection: str | None = None,
    full: Annotated[bool, Parameter(negative="")] = False, weighted: Annotated[bool, Parameter(negative="")] = False,
    epochs: int = FineTune.epochs, steps: int | None = None, learning_rate: float = FineTune.learning_rate,
    batch_size: int = FineTune.batch_size, micro_batch_tokens: int | None = None,
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear",
    warmup_ratio: float = FineTune.warmup_ratio, weight_decay: float = FineTune.weight_decay,
    max_grad_norm: float = FineTune.max_grad_norm, optimizer: str = FineTune.optimizer,
    precision: Literal["auto", "float32", "bfloat16"] = "auto", online: str | None = None, prune: float | None = None,
    param: Parameters = None, settings: UsedFlags = None,
) -> None:  # fmt: skip
    """Train a model on a subset (or a pool): a LoRA, or all its weights.

    ```
    pursuit finetune --run runs/x --subset subset.jsonl --out models/a
    pursuit finetune --run runs/x --selection tagcos --weighted --out models/b
    pursuit finetune --model M --pool pool.jsonl --online optbatch --prune 0.3 --out models/c
    ```

    A run gives the model, its chat template, the truncation and the LoRA's settings; flags override them, and --model
    trains another model on the same rows. Stopped or killed, the same command goes on where it was and ends with the
    same bits. `pursuit evaluate --model M --adapter models/a --eval heldout.jsonl` scores the result.

    Args:
        out: Folder for the trained adapter (PEFT's format) or the model, its tokenizer, log and settings.
        run: Run folder to take the model and everything about reading rows from.
        subset: A file that `select` wrote; with --weighted, its table must lie beside it.
        selection: A selection of the run, by its name or the beginning of it (tagcos), instead of --subset.
        full: Train all weights of the model instead of a LoRA.
        weighted: Multiply each row's loss by the weight that its selection gave it, scaled to mean 1.
        epochs: How often each row is trained on.
        steps: Optimizer steps, instead of epochs: the same number whatever the size of the subset.
        learning_rate: Peak learning rate.
        batch_size: Rows an optimizer step.
        micro_batch_tokens: Padded tokens in memory at once; less needs less memory and gives the same but for rounding.
            2048 on a CPU and 16384 on a GPU if not given.
        schedule: Of the learning rate, over the whole training.
        warmup_ratio: Share of the training in which it rises.
        weight_decay: The optimizer's.
        max_grad_norm: Gradient clipping; 0 does not clip.
        optimizer: A name that transformers knows: adamw_torch, adafactor, sgd, lion_32bit, …
        precision: In which the model computes; auto: bfloat16 if it is loaded so, else float32. The weights that are
            trained are float32 while they are.
        online: Leave out part of every batch: optbatch, random, hardest, infobatch or full. The folder then has
            batch_selection.html, which draws what was kept and what it cost.
        prune: With --online, the share that is left out.
    """
    values = looked_at(given(settings), [str(subset)] if subset else [])
    from pursuit.finetune.command import Source, run_finetune

    recipe = FineTune(
        epochs=epochs, max_steps=steps, batch_size=batch_size, micro_batch_tokens=micro_batch_tokens,
        learning_rate=learning_rate, schedule=schedule, warmup_ratio=warmup_ratio, weight_decay=weight_decay,
        max_grad_norm=max_grad_norm, optimizer=optimizer, weighted=weighted, precision=precision,
    )  # fmt: skip
    parameters: dict[str, Any] = parse_parameters(param or [])
    if prune is not None:
        parameters["prune"] = prune
    run_finetune(
        Source(run, subset, selection), out, recipe, values, full=full, online=online,
        online_parameters=parameters,
    )  # fmt: skip
