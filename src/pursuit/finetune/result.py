"""What a fine-tuning leaves: an adapter or a whole model in safetensors, its tokenizer, its log and its record.

folder/adapter_model.safetensors, adapter_config.json     a LoRA or another adapter, in PEFT's format
folder/model.safetensors, config.json, …                  or the whole model
folder/tokenizer.json, …                                  where a tokenizer was given
folder/log.jsonl                                          loss, learning rate, tokens, seconds: a line a step
folder/finetune.json                                      what it was made from; losses and costs; written last
folder/batch_selection.html                               by the command, where batches were chosen from
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from pursuit.errors import StoreError
from pursuit.files import PARTIAL, full_disk_told, read_json, sha256_file, write_record
from pursuit.models.loading import load_model
from pursuit.models.trainable import ADAPTER_WEIGHTS
from pursuit.progress import say
from pursuit.versions import versions

MANIFEST = "finetune.json"


@dataclass(frozen=True)
class Finetuned:
    """A finished fine-tuning.

    Attributes:
        folder: where it lies.
        adapter: whether it is an adapter to be put on the base model; otherwise a whole model.
        trained_parameters: how many numbers were trained.
        rows: rows trained on, those of weight 0 not counted.
        steps: optimizer steps; `epochs` of them over the rows.
        losses: of each step, before it: mean over the tokens trained on, weighted where the training was.
        examples, tokens, learnt_tokens: trained on, counted each time; tokens without padding, and those among them
            that the loss is of.
        seconds: of training, over all starts, without what a killed start did after its last checkpoint.
        peak_memory_bytes: allocated by torch on a GPU, of the whole process on a CPU.
    """

    folder: Path
    adapter: bool
    trained_parameters: int
    rows: int
    steps: int
    epochs: float
    losses: tuple[float, ...]
    examples: int
    tokens: int
    learnt_tokens: int
    seconds: float
    peak_memory_bytes: int

    @classmethod
    def load(cls, folder: str | Path) -> Finetuned:
        """Read a finished one.

        Raises:
            StoreError: there is none in the folder, or it is not finished.
        """
        folder = Path(folder)
        record = read_record(folder)
        if not record.get("finished"):
            state = "is not finished" if record else f"is none here ({MANIFEST} is missing)"
            raise StoreError(f"{folder}: the fine-tuning {state}. Start it again; it goes on where it stopped.")
        result = dict(record["result"])
        return cls(folder=folder, **{**result, "losses": tuple(result["losses"])})

    def load_into(self, model: nn.Module) -> None:
        """Copy the trained weights into `model`, in place; it must be made as the trained one was."""
        if self.adapter:
            set_peft_model_state_dict(cast(PeftModel, model), load_file(self.folder / ADAPTER_WEIGHTS))
            return
        first = next(model.parameters())
        stored = load_model(self.folder, dtype=str(first.dtype).removeprefix("torch."), device=str(first.device))
        model.load_state_dict(stored.state_dict())


def read_record(folder: Path) -> dict[str, Any]:
    """`finetune.json`; empty where there is none.

    Raises:
        StoreError: it is damaged.
    """
    if not (folder / MANIFEST).exists():
        return {}
    try:
        return dict(read_json(folder / MANIFEST))
    except StoreError as error:
        what = f"{folder / MANIFEST}: is damaged, so that nothing vouches for the model beside it"
        raise StoreError(f"{what}. Delete the folder, or choose another one.") from error


def begin_record(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Write down what a training is made from before it starts."""
    write_record(folder / MANIFEST, {"finished": False, "made_from": dict(made_from), "versions": versions()})


def finish_record(done: Finetuned, files: Sequence[str]) -> None:
    """Write down that it is finished, what came out of it, and the digests of its files."""
    result = {name: value for name, value in asdict(done).items() if name != "folder"}
    digests = {name: sha256_file(done.folder / name) for name in files}
    record = {**read_record(done.folder), "finished": True, "result": result, "sha256": digests}
    write_record(done.folder / MANIFEST, record)


def is_finished(folder: Path) -> bool:
    """Whether there is a finished one whose files are as they were written; what is damaged is told of."""
    record = read_record(folder)
    if not record.get("finished"):
        return False
    for name, digest in record.get("sha256", {}).items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != digest:
            say(f"{path}: {'damaged' if path.is_file() else 'missing'}; it is trained again")
            return False
    return True


def write_model(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> list[str]:
    """Save the trained weights as others read them: aside first, then moved file by file; returns the files' names."""
    aside = folder / f"model{PARTIAL}"
    shutil.rmtree(aside, ignore_errors=True)
    with full_disk_told(folder):
        return _saved(model, tokenizer, folder, aside)


def _saved(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, folder: Path, aside: Path) -> list[str]:
    saved = cast(Any, model)
    if isinstance(model, PeftModel):
        saved.save_pretrained(aside, save_embedding_layers=False)  # they are frozen; "auto" would ask the hub
        (aside / "README.md").unlink(missing_ok=True)  # PEFT's empty form
    else:
        saved.save_pretrained(aside)
    if tokenizer is not None:
        tokenizer.save_pretrained(aside)
    names = sorted(path.name for path in aside.iterdir())
    for name in names:
        with open(aside / name, "rb+") as handle:
            os.fsync(handle.fileno())
        os.replace(aside / name, folder / name)
    aside.rmdir()
    return names


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: torch's on a GPU since `reset_peak`; elsewhere this process's, since it began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
