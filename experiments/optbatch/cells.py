"""One training and its scores: a cell, kept on disk when it is finished."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from experiments.optbatch.studies import Arm, Study
from pursuit.encoding import EncodedPool
from pursuit.evaluate import EvalSet, evaluate
from pursuit.files import fingerprint, read_json, write_json
from pursuit.finetune import finetune
from pursuit.models.loading import load_tokenizer

METRICS = ("loss", "exact")
Cell = dict[str, Any]


def untrained(study: Study, heldout: EvalSet, folder: Path) -> dict[str, float]:
    """Scores of the model before any training."""
    path = folder / "untrained.json"
    if not path.exists():
        write_json(path, _scores(study, study.first_model(0), heldout))
    return read_json(path)


def trained(
    study: Study, rows: EncodedPool, heldout: EvalSet, folder: Path, arm: Arm, seed: int, steps: int
) -> Cell:  # fmt: skip
    """Train for so many steps and score. A training that was killed begins anew, so that its CPU time is whole."""
    recipe = replace(study.recipe, max_steps=steps, seed=seed)
    key = fingerprint([asdict(recipe), None if study.lora is None else asdict(study.lora)])[:8]
    path = folder / f"{arm.label.replace(' ', '-')}-{steps}-{seed}-{key}.json"
    if path.exists():
        return read_json(path)
    shutil.rmtree(folder / "model", ignore_errors=True)
    torch.manual_seed(seed)
    model = study.first_model(seed)
    begun = time.process_time()
    done = finetune(model, rows, folder / "model", recipe, batch_selection=arm.selector(seed))
    cpu = time.process_time() - begun
    log = [json.loads(line) for line in (folder / "model" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    flops = sum(line["batch_selection"]["flops_spent"] for line in log)
    cell = {
        "arm": arm.label, "seed": seed, "steps": steps, "trained_examples": done.examples,
        "cpu_seconds": round(cpu, 2), "flops": float(f"{flops:.4g}"), **_scores(study, model, heldout),
    }  # fmt: skip
    write_json(path, cell)
    return cell


def _scores(study: Study, model: torch.nn.Module, heldout: EvalSet) -> dict[str, float]:
    """Means over the families' means."""
    found = evaluate(model, load_tokenizer(str(study.model)), heldout, metrics=METRICS)
    return {metric: round(found.macro[metric].mean, 6) for metric in METRICS}
