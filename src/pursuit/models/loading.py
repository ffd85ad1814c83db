"""Loading a model and its tokenizer, and telling one model from another.

Weights come from safetensors or GGUF only: pickled checkpoints can run code when they are read, so they are refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pursuit.errors import ModelError
from pursuit.files import fingerprint, sha256_file
from pursuit.models.place import find_model
from pursuit.models.quantized import four_bit_options
from pursuit.models.trainable import Lora, lora_targets, parameter_count, prepare_trainable, trainable_parameters

__all__ = [
    "Lora", "load_model", "load_tokenizer", "lora_targets", "model_fingerprint", "parameter_count",
    "prepare_trainable", "trainable_parameters",
]  # fmt: skip

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "tekken.json",
)  # fmt: skip
IDENTITY_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.py")  # weights, tokenizer, own code
LOADING_ERRORS = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)


def load_tokenizer(
    model: str | os.PathLike[str], *, trust_remote_code: bool = False, revision: str | None = None
) -> PreTrainedTokenizerBase:
    """The model's tokenizer, always with a padding token (its own, else EOS; padding is masked and never learnt from).

    Args:
        model: hub id, local folder, or a .gguf file (or a folder that holds one).
        trust_remote_code: run Python code that the model brings along.
        revision: branch, tag or commit on the hub.

    Raises:
        ModelError: no folder, no tokenizer in it, or the hub has none by this name.
    """
    source = find_model(model, revision)
    if source.local and source.gguf_file is None and not any((Path(source.name) / f).exists() for f in TOKENIZER_FILES):
        raise ModelError(
            f"{source.name}: no tokenizer in this folder (looked for {', '.join(TOKENIZER_FILES)}). "
            "Save one into it: AutoTokenizer.from_pretrained(base_model).save_pretrained(folder)."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.name, trust_remote_code=trust_remote_code, revision=revision, **source.arguments()
        )
    except LOADING_ERRORS as error:
        raise source.error("tokenizer", error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def settled_dtype(
    model: str | os.PathLike[str], dtype: str, device: str, *, trust_remote_code: bool = False,
    revision: str | None = None,
) -> str:  # fmt: skip
    """What "auto" means for this model on this device, so that a run keeps to it wherever it goes on.

    "float32" on a CPU and for GGUF; otherwise the checkpoint's own, as its configuration names it, but bfloat16 instead
    of float16, in which small gradients are zero without a scaled loss [ours].
    """
    if dtype != "auto":
        return dtype
    if find_device(device).type == "cpu":
        return "float32"
    found = checkpoint_dtype(model, trust_remote_code=trust_remote_code, revision=revision)
    return "bfloat16" if found == "float16" else found


def checkpoint_dtype(
    model: str | os.PathLike[str], *, trust_remote_code: bool = False, revision: str | None = None
) -> str:
    """The data type that a checkpoint's configuration names; "float32" for GGUF and where it names none."""
    source = find_model(model, revision)
    if source.gguf_file is not None:
        return "float32"
    try:
        config = transformers.AutoConfig.from_pretrained(
            source.name, trust_remote_code=trust_remote_code, revision=revision
        )
    except LOADING_ERRORS as error:
        raise source.error("configuration", error) from error
    name = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return name if name in DTYPES else "float32"


def load_model(
    model: str | os.PathLike[str], *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False,
    revision: str | None = None, attention: str | None = None, load_in_4bit: bool = False,
) -> PreTrainedModel:  # fmt: skip
    """A causal language model in evaluation mode, on its device.

    Args:
        model: hub id, local folder, or a .gguf file (or a folder that holds one; its weights are dequantised).
        dtype: "float32", "bfloat16", "float16", or "auto": the checkpoint's own, but float32 on a CPU (ours).
        device: "cpu", "cuda", "cuda:1", "mps", or "auto": the first GPU if there is one.
        trust_remote_code: run Python code that the model brings along.
        revision: branch, tag or commit on the hub.
        attention: transformers' attn_implementation ("sdpa", "eager", "flash_attention_2"); None lets it choose.
        load_in_4bit: keep the weights of linear layers (but for the head) in 4 bits, see `pursuit.models.quantized`.

    Raises:
        ModelError: cannot be found, is not safetensors or GGUF, is damaged, or lacks some of its weights.
    """
    place, source = find_device(device), find_model(model, revision)
    if dtype not in ("auto", *DTYPES):
        raise ModelError(f"dtype {dtype!r} is not known; use auto, {', '.join(DTYPES)}.")
    source.check_weights()
    wanted: Any = DTYPES.get(dtype, torch.float32 if place.type == "cpu" else "auto")
    options = source.arguments()
    if source.gguf_file is None:
        options["use_safetensors"] = True
    elif hasattr(transformers, "GgufConfig"):  # without it, newer transformers keep packed weights: not trainable
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        wanted = torch.float32 if wanted == "auto" else wanted
    if attention is not None:
        options["attn_implementation"] = attention
    if load_in_4bit:
        if source.gguf_file is not None:
            raise ModelError(f"{source.name}: a GGUF file is read whole; for 4 bits give the safetensors of the model.")
        exact = settled_dtype(model, dtype, device, trust_remote_code=trust_remote_code, revision=revision)
        options |= four_bit_options(source.name, DTYPES[exact], place)
    try:
        answer: Any = AutoModelForCausalLM.from_pretrained(
            source.name, dtype=wanted, trust_remote_code=trust_remote_code, revision=revision,
            output_loading_info=True, **options,
        )  # fmt: skip
    except LOADING_ERRORS as error:
        raise source.error("model", error) from error
    loaded, report = answer
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{source.name}: {len(missing)} weights are not in the checkpoint and would be random, such as "
            f"{missing[0]}. Is this a complete causal language model?"
        )
    return loaded.eval() if load_in_4bit else loaded.to(place).eval()


def find_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"device {name!r} is not known; use auto, cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device {name!r}: this machine offers torch {torch.cuda.device_count()} CUDA devices.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device 'mps': torch finds no Metal device on this machine.")
    return device


def model_fingerprint(model: str | os.PathLike[str], *, revision: str | None = None) -> dict[str, Any]:
    """What identifies a model's bits, as JSON-able values; equal for equal models, so it can key a cache.

    A folder or GGUF file: SHA-256 of weights, configuration and tokenizer, by file name and wherever the folder lies
    (in one process a file is hashed again only when its size or time changed). A hub id: its commit.
    """
    source = find_model(model, revision)
    if source.local:
        folder = Path(source.name)
        patterns = (source.gguf_file,) if source.gguf_file else IDENTITY_FILES
        files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
        digests = {path.name: _digest(path) for path in files}
        return {"kind": "gguf" if source.gguf_file else "folder", "files": digests, "digest": fingerprint(digests)}
    try:
        config: Mapping[str, Any]
        config, _ = transformers.PretrainedConfig.get_config_dict(source.name, revision=revision)
    except LOADING_ERRORS as error:
        raise source.error("configuration", error) from error
    settled = {key: value for key, value in config.items() if key != "_commit_hash"}
    identity = {"id": source.name, "revision": config.get("_commit_hash") or revision, "config": fingerprint(settled)}
    return {"kind": "hub", **identity, "digest": fingerprint(identity)}


def _digest(path: Path) -> str:
    status = path.stat()
    return _digest_once(str(path.resolve()), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest_once(path: str, size: int, modified: int) -> str:
    return sha256_file(path)
