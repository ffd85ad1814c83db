"""Instructions, chosen by SmolLM2: exact answers, another model, another draw."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.mixed.setting import FAMILIES, OTHERS, Draw, mixed_data, mixed_run
from experiments.mixed.setting import TRAINING as MIXED_TRAINING
from experiments.robustness.gemma import fetch_gemma
from experiments.robustness.study import Folders, Study
from pursuit.compare import Comparison

TRANSFERRED = ("gtp", "tagcos(clusters=10)", "random")
MIXED = ("gtp", "less", "tagcos(clusters=10)", "random")
INSTRUCTIONS = Draw(
    eval_rows=8, max_characters=650,
    families=(
        "subtask018_mctaco_temporal_reasoning_presence", "subtask033_winogrande_answer_generation",
        "subtask039_qasc_find_overlapping_words", "subtask041_qasc_answer_generation",
        "subtask043_essential_terms_answering_incomplete_questions", "subtask046_miscellaenous_question_typing",
        "subtask050_multirc_answerability", "subtask051_multirc_correct_answer_single_sentence",
    ),
)  # fmt: skip


def mixed_exact(folders: Folders) -> Study:
    """Exact answers instead of loss."""
    data = mixed_data(folders.mixed)
    run = mixed_run(folders.mixed, data, "default")
    compared = Comparison(
        methods=(*MIXED, in_turn(FAMILIES)), budgets=("5%",), evaluation=[str(data / "eval.jsonl")],
        train=MIXED_TRAINING, metrics=("loss", "exact"),
    )  # fmt: skip
    return Study("Mixed pool, with exact answers.", {"ten families": {"": (run, compared)}})


def mixed_models(folders: Folders) -> Study:
    """SmolLM2 chooses, Gemma 3 is trained."""
    data = mixed_data(folders.mixed)
    run = mixed_run(folders.mixed, data, "default")
    compared = Comparison(
        methods=TRANSFERRED, budgets=("5%",), evaluation=[str(data / "eval.jsonl")], train=MIXED_TRAINING,
        train_model=str(fetch_gemma()), train_template="plain",  # Gemma would spell chatml's marks in letters
    )  # fmt: skip
    return Study(
        "Mixed pool: what SmolLM2-135M-Instruct chose, trained by Gemma 3 270M, a base model (LoRA of the same rank on "
        "all its attention projections).", {"ten families": {"": (run, compared)}},
    )  # fmt: skip


def natural_instructions(folders: Folders) -> Study:
    """Another draw of the mixed pool, of longer rows, by all methods."""
    out = folders.mixed / "natural-instructions"
    data = mixed_data(out, INSTRUCTIONS)
    run = mixed_run(out, data, "default", max_length=400, on_bad_row="skip")  # one row has a NUL character
    compared = Comparison(
        methods=(*MIXED, in_turn(INSTRUCTIONS.families), "gtp(in_domain=true)", *OTHERS, "rds"), budgets=("5%",),
        evaluation=[str(data / "eval.jsonl")], train=MIXED_TRAINING, metrics=("loss", "exact"),
    )  # fmt: skip
    return Study(
        "Another draw of the mixed pool: rows of up to 650 characters for 140, so that a third of them are of Natural "
        "Instructions, among which are tasks that ask for wrong answers; eight of its tasks are held out and aimed at.",
        {"eight tasks": {"": (run, compared)}}, INSTRUCTIONS.families,
    )  # fmt: skip


def in_turn(families: Sequence[str]) -> str:
    """LESS, with the best rows of each family of the target in turn."""
    shares = ",".join(f"{family}=1" for family in families)
    return f'less(quotas="{shares}")'
