"""Where a model is: a folder, a GGUF file or an id of the hub. Told from names alone, before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pursuit.errors import ModelError

CONVERT = (
    "python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{folder}', "
    "use_safetensors=False).save_pretrained('{folder}-safetensors')\" (only for a file you trust), then copy the "
    "tokenizer files beside the new weights"
)


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is: a hub id or a folder, and in it perhaps a GGUF file."""

    name: str
    local: bool
    gguf_file: str | None = None

    def arguments(self) -> dict[str, Any]:
        """What transformers is told beside the name."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}

    def error(self, what: str, error: BaseException) -> ModelError:
        """A ModelError that says why `what` could not be loaded and how to go on."""
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if "trust_remote_code" in str(error):
            how = "It brings its own Python code: pass trust_remote_code only if you have read and trust that code."
        elif self.local:
            how = "Is the folder complete and its files undamaged?"
        else:
            how = "Is it a complete model with safetensors weights? A local folder works too."
        return ModelError(f"{self.name}: the {what} could not be loaded: {reason} {how}")

    def check_weights(self) -> None:
        """ModelError for a folder whose weights could not be read: there are none, or pickled ones only."""
        folder = Path(self.name)
        if not self.local or self.gguf_file is not None or any(folder.glob("*.safetensors")):
            return
        if pickled := sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]):
            raise ModelError(
                f"{pickled[0]}: pickled weights can run code when they are read, so pursuit reads safetensors only. "
                f"Convert them once: {CONVERT.format(folder=folder)}."
            )
        raise ModelError(f"{folder}: config.json is there, but no *.safetensors weights are.")


def find_model(model: str | os.PathLike[str], revision: str | None = None, *, ask: bool = True) -> ModelPlace:
    """Decide between hub id, folder and GGUF file.

    Args:
        ask: the hub, whether it has what can only be an id.

    Raises:
        ModelError: it is none of them.
    """
    name = os.fspath(model)
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{name}: a model is a folder, a hub id or a .gguf file; this is another kind of file.")
        return _gguf_place(path)
    if path.is_dir():
        if (path / "config.json").exists():
            return ModelPlace(str(path), local=True)
        if (path / "adapter_config.json").exists():
            raise ModelError(f"{name}: this is an adapter, not a model. Give its base model, and this as the adapter.")
        found = sorted(path.glob("*.gguf"))
        if len(found) > 1:
            raise ModelError(f"{name}: several GGUF files ({', '.join(f.name for f in found)}); name one of them.")
        if not found:
            raise ModelError(f"{name}: no config.json and no .gguf file in this folder, so no model is here.")
        return _gguf_place(found[0])
    if name.startswith((".", "~", "/")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelError(f"{name}: there is no such folder. Give a model's folder, its hub id or a .gguf file.")
    if ask:
        from pursuit.models.hub import ask_hub  # whose library takes a while, and is not needed for a folder

        ask_hub(name, revision)
    return ModelPlace(name, local=False)


def _gguf_place(path: Path) -> ModelPlace:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{path}: reading GGUF files needs one more package: pip install gguf")
    return ModelPlace(str(path.parent), local=True, gguf_file=path.name)
