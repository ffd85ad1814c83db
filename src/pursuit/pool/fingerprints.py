"""What a source's content is, as a digest."""

from __future__ import annotations

import hashlib

import fsspec

from pursuit.errors import DataError
from pursuit.files import sha256_file
from pursuit.pool.readers import read_rows
from pursuit.pool.sources import Source


def content_digest(source: Source) -> str:
    """Hex SHA-256 of a file's bytes; of a data set's Arrow files, or of its rows where it has none on disk."""
    try:
        if source.kind == "dataset":
            return _dataset_digest(source)
        if "://" not in source.path:
            return sha256_file(source.path)
        with fsspec.open(source.path, "rb") as handle:
            digest = hashlib.sha256()
            while block := handle.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", path=source.path) from error


def _dataset_digest(source: Source) -> str:
    digest = hashlib.sha256(f"{source.dataset.split}:{len(source.dataset)}".encode())
    files = [entry["filename"] for entry in source.dataset.cache_files]
    # a slice such as train[:10%] shares its files with the whole: only its rows tell the two apart
    whole = files and getattr(source.dataset, "_indices", None) is None and "[" not in str(source.dataset.split)
    if whole:
        for file in files:
            digest.update(sha256_file(file).encode())
    else:
        for row in read_rows(source):
            digest.update(row.load()[1] + b"\n")
    return digest.hexdigest()
