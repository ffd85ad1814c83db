"""Writing files so that a reader sees the whole file or none: write beside, flush, rename."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from pursuit.errors import PursuitError, RunError, SettingsError, StoreError

METADATA = "pursuit"  # the one metadata key of our safetensors files
CHECKSUM = "checksum"  # key in a record
PARTIAL = ".partial"  # suffix of a file still being written; never read, overwritten by the next start


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is flushed to disk and renamed to `path`.

    Several processes may write the same file at once: each has a path of its own, and the last to end counts.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _own(path.with_name(path.name + PARTIAL)) as partial, _removed_on_error(partial):
            yield partial
            with open(partial, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(partial, path)
    except OSError as error:
        if _is_full(error):
            raise _full(path) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
            raise _unwritable(path, error) from error
        raise


@contextmanager
def full_disk_told(path: Path) -> Iterator[None]:
    """A full disk is a RunError that names the path, also where a library raises an error of its own."""
    try:
        yield
    except PursuitError:
        raise
    except Exception as error:
        if _is_full(error):
            raise _full(path) from error
        raise


@contextmanager
def _removed_on_error(partial: Path) -> Iterator[None]:
    """While it is still ours: another writer may take it over as soon as it is not."""
    try:
        yield
    except Exception:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _is_full(error: Exception) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or os.strerror(errno.ENOSPC) in str(error)


def _full(path: Path) -> RunError:
    return RunError(
        f"{path}: the disk is full. Free some space and start the same command again: "
        "everything finished so far is kept."
    )


@contextmanager
def _own(partial: Path) -> Iterator[Path]:
    """`partial`, or a name of this thread's own while another writer holds that one; a killed one's is taken over."""
    while True:
        with open(partial, "ab") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                mine = f"{partial.stem}.{platform.node()}-{os.getpid()}-{threading.get_ident()}{PARTIAL}"
                yield partial.with_name(mine)
                return
            if _is_at(handle, partial):  # and not renamed by its writer since it was opened
                yield partial
                return


def _is_at(handle: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a folder's small files for a moment: processes that begin the same store do so one after another."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[str | Path]) -> None:
    """SettingsError if a file to be written is one that is read, or lies in a folder that is read."""
    read = {Path(given).resolve() for given in inputs if os.path.exists(given)}
    for path in outputs:
        if hit := read & {path.resolve(), *path.resolve().parents}:
            raise SettingsError(f"{path}: would overwrite what is read ({hit.pop()}). Name another.")


def refuse_unwritable(outputs: Iterable[Path]) -> None:
    """Find out before any work whether these files can be written; the folders they go into are made.

    Raises:
        SettingsError: one is a folder.
        RunError: a folder cannot be made or written into.
    """
    for path in outputs:
        if path.is_dir():
            raise SettingsError(f"{path}: is a folder. Name a file.")
        make_folder(path.parent)


def make_folder(path: Path) -> Path:
    """The folder, made if it is not there.

    Raises:
        RunError: it cannot be made, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):  # permissions alone do not tell: of root, or of a read-only disk
            pass
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: cannot be written ({error.strerror}). Choose another folder.")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """`write_json` with a checksum, which `read_json` verifies: for what decides whether results stand."""
    write_json(path, {**value, CHECKSUM: _checksum(value)})


def read_json(path: Path) -> Any:
    """Read JSON; a damaged file is a StoreError that names it, a checksum is verified and left out."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise StoreError(f"{path}: cannot be read as JSON ({error}). Delete it and start again.") from error
    if isinstance(value, dict) and CHECKSUM in value and value.pop(CHECKSUM) != _checksum(value):
        raise StoreError(f"{path}: is damaged, or was changed by hand (checksum). Delete it and start again.")
    return value


def _checksum(value: Mapping[str, Any]) -> str:
    return fingerprint(json.loads(json.dumps(value)))  # as it is read: keys of text, lists for tuples


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
    """Write torch tensors as one safetensors file, atomically; equal content gives equal bytes.

    The metadata is kept as JSON under one key, as the format leaves the order of several keys open.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {METADATA: json.dumps(metadata, sort_keys=True)} if metadata else None
    with atomic_path(path) as partial:
        partial.write_bytes(save(contiguous, metadata=header))


def tensor_metadata(handle: Any) -> dict[str, Any]:
    """The metadata that `write_tensors` left, from an open safetensors file."""
    return json.loads((handle.metadata() or {}).get(METADATA, "{}"))


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Short hex digest of any JSON-able value, independent of key order."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
