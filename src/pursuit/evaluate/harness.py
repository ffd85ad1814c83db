"""Tasks of lm-eval (EleutherAI's harness), an optional extra, on a model that is already loaded."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from transformers import PreTrainedTokenizerBase

from pursuit.errors import RunError, SettingsError
from pursuit.progress import say

INSTALL = "pip install lm-eval"
ROWS_A_BATCH = 16
STDERR = "_stderr"


def check_lm_eval() -> None:
    """Raise a SettingsError with the line that installs lm-eval, if it is not there."""
    if importlib.util.find_spec("lm_eval") is None:
        raise SettingsError(f"lm-eval's tasks need one more package: {INSTALL}")


def run_lm_eval(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, tasks: Sequence[str], options: Mapping[str, Any] | None = None
) -> dict[str, dict[str, float | None]]:
    """Measures of each task and group, such as {"mmlu": {"acc": 0.31, "acc_stderr": 0.004}}.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        tasks: names that lm-eval knows, or YAML files of your own.
        options: of lm_eval.simple_evaluate: num_fewshot, limit, apply_chat_template, batch_size, …

    Raises:
        SettingsError: lm-eval is not installed, a task or an option is not known.
        RunError: a task's data cannot be had.
    """
    check_lm_eval()
    os.environ.setdefault("LMEVAL_LOG_LEVEL", "ERROR")
    say("loading lm-eval and its list of tasks (half a minute) …")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    files = [Path(task) for task in tasks if task.endswith((".yaml", ".yml"))]
    names = [_task_name(Path(task)) if task.endswith((".yaml", ".yml")) else task for task in tasks]
    folders = sorted({str(file.parent.resolve()) for file in files})
    manager = TaskManager(include_path=folders, include_defaults=len(files) < len(tasks))  # theirs take long to list
    if unknown := sorted(set(names) - set(manager.all_tasks)):
        raise SettingsError(
            f"lm-eval knows no task {', '.join(unknown)}; `lm-eval ls tasks` lists those it has, and a task of your "
            "own is given as its .yaml file."
        )
    given = dict(options or {})
    rows = given.pop("batch_size", ROWS_A_BATCH)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=rows)
    try:
        found = simple_evaluate(model=wrapped, tasks=names, task_manager=manager, log_samples=False, **given)
    except TypeError as error:
        raise SettingsError(f"lm-eval does not accept these options: {error}") from error
    except (OSError, ConnectionError) as error:
        raise RunError(f"lm-eval could not get the data of {', '.join(names)}: {error}") from error
    return {task: _measures(measures) for task, measures in (found or {})["results"].items()}


def _task_name(file: Path) -> str:
    """The name that a task's file gives it (its tags such as !function are not run here)."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read ({error.strerror}).") from error
    named = [line for line in lines if line.startswith(("task:", "group:"))]
    name = yaml.safe_load(named[0]).popitem()[1] if named else None
    if not isinstance(name, str):
        raise SettingsError(f"{file}: a task's file names it by a line `task: name`.")
    return name


def _measures(measures: Mapping[str, Any]) -> dict[str, float | None]:
    """lm-eval's "acc,none" and "acc_stderr,none" as acc and acc_stderr; a filter other than none is named too."""
    found: dict[str, float | None] = {}
    for key, value in measures.items():
        name, comma, kind = key.partition(",")
        if comma:
            base, ending = (name.removesuffix(STDERR), STDERR) if name.endswith(STDERR) else (name, "")
            number = float(value) if isinstance(value, int | float) else math.nan
            shown = (base if kind == "none" else f"{base} ({kind})") + ending
            found[shown] = number if math.isfinite(number) else None
    return found
