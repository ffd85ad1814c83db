"""Versions of what shapes a result, to be kept beside it."""

from __future__ import annotations

import importlib.metadata
import platform

SHOWN_PACKAGES = ("pursuit", "torch", "transformers", "peft", "accelerate", "faiss-cpu", "numpy", "pyarrow")


def versions() -> dict[str, str]:
    """Versions of what shapes the result."""
    found = {"python": platform.python_version()}
    for name in SHOWN_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
