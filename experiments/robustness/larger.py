"""Eight thousand instructions, chosen from and trained on by a GPU: the papers' settings but for the model."""

from __future__ import annotations

from demo.fetch import fetch_model

from experiments.gradients import OTHER_GRADIENTS
from experiments.mixed.setting import OTHERS, Draw, mixed_data
from experiments.pools.mixed import FAMILIES
from experiments.robustness.instructions import in_turn
from experiments.robustness.study import Folders, Study
from pursuit import Run
from pursuit.compare import Comparison
from pursuit.finetune import FineTune

DRAW = Draw(rows=8_000, eval_rows=30, target_rows=10, families=FAMILIES, max_characters=1_000)
STEPS = {"5%": 50, "0.5%": 16}  # of 32 rows: four and thirteen times round the choice
AIMED = ("gtp", "less", "random")
METHODS = {
    "5%": (*AIMED, "tagcos", "gtp(in_domain=true)", in_turn(FAMILIES), "rds", *OTHERS),
    "0.5%": (*AIMED, "tagcos", "rds"),
}
# as LESS': LoRA of rank 128 and a warm-up of four epochs of 5 %; the rate is ours, for a model fifty times smaller
LEARNING_RATE, BATCH = 4e-4, 32
RUN = {
    "chat_template": "chatml", "max_length": 512, "dtype": "bfloat16", "on_bad_row": "skip",
    "warmup": {"checkpoint_steps": [26, 52], "sample": 400, "batch_size": BATCH,
               "learning_rate": LEARNING_RATE, "micro_batch_tokens": 8192},
    "features": {"dimension": 8192, "batch_tokens": 32768, **OTHER_GRADIENTS["default"]},
}  # fmt: skip


def larger_pool(folders: Folders) -> Study:
    """All methods at 5 %, and those that are meant for it at 0.5 %."""
    out = folders.mixed / "larger"
    data = mixed_data(out, DRAW)
    run = Run(
        out / "run", **RUN, model=str(fetch_model()), pool=str(data / "pool.jsonl"), target=str(data / "target.jsonl")
    )
    goals = {
        budget: {"": (run, Comparison(
            methods=methods, budgets=(budget,), evaluation=[str(data / "eval.jsonl")], metrics=("loss", "exact"),
            train=FineTune(
                max_steps=STEPS[budget], batch_size=BATCH, learning_rate=LEARNING_RATE, micro_batch_tokens=8192
            ),
        ))}
        for budget, methods in METHODS.items()
    }  # fmt: skip
    return Study(
        "Instructions of five collections on a GPU: 8,000 rows of up to 1,000 characters, twelve families held out "
        "and aimed at (ten rows of each). SmolLM2-135M-Instruct in bfloat16, LoRA of rank 128 on its attention "
        "projections, gradients after two and four epochs of a warm-up on 400 rows, 8,192 numbers. 50 steps of 32 "
        "rows on 5 %, 16 on 0.5 %.", goals, FAMILIES,
    )  # fmt: skip
