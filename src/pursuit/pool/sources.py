"""From the paths a user gives to the files and data sets that are read: names, globs, kinds, splits."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from pursuit.errors import DataError

COMPRESSIONS = (".gz", ".zst", ".xz")
KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
ACCEPTED = ".jsonl, .json, .csv, .tsv (each also .gz, .zst or .xz), .parquet, or a `datasets` folder or id"
_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)
_SPLIT = re.compile(r"(.+):([\w.]+(?:\[[^\]]*\])?)")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Source:
    """One file or data set of the pool.

    Attributes:
        name: the source name its rows carry when they do not name one themselves.
        named: the user gave the name (`name=path`), so that it stands above the rows' own.
        path: as in error messages.
        kind: "jsonl", "json", "csv", "tsv", "parquet" or "dataset".
        dataset: the loaded `datasets.Dataset` of kind "dataset".
    """

    name: str
    named: bool
    path: str
    kind: str
    dataset: Any = field(default=None, compare=False, repr=False)


def resolve_sources(paths: str | Path | Sequence[str | Path]) -> list[Source]:
    """Every file and data set behind `paths`, in the order given (a glob's files sorted by name).

    Raises:
        DataError: nothing is there, the kind cannot be told from the name, or one file is given twice.
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise DataError("no pool was given: name at least one file or data set")
    sources = [source for path in given for source in _resolve(str(path))]
    seen: set[str] = set()
    for source in sources:
        identity = source.path if _is_url(source.path) else os.path.realpath(source.path)
        if identity in seen:
            raise DataError("is given twice: every row would count double", path=source.path)
        seen.add(identity)
    return sources


def refuse_missing(paths: Sequence[str]) -> None:
    """DataError for a file that is not there, of those that are told from data sets by their names; nothing is read."""
    for given in paths:
        path = os.path.expanduser(split_name(given)[1])
        if not _is_url(path) and _kind(path) and not os.path.isdir(path):
            _resolve(given)


def _resolve(given: str) -> list[Source]:
    name, path = split_name(given)
    if _is_url(path):
        return [_file_source(name, found) for found in _expand_url(path)]
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return [_file_source(name, path)]
    if not os.path.exists(path) and glob.has_magic(path) and not _SPLIT.fullmatch(path):
        return _expand_glob(name, path)
    if _kind(path) and not os.path.isdir(path):
        raise DataError(f"there is no such file{_near_names(path)}", path=path)
    return [_dataset_source(name, path)]


def split_name(given: str) -> tuple[str | None, str]:
    """`name=path` in its two parts; a path that is there, or a pattern of such, has no name, whatever its letters."""
    whole = os.path.exists(given) or (glob.has_magic(given) and any(glob.iglob(given, recursive=True)))
    match = None if whole else _NAMED.fullmatch(given)
    return (match[1], match[2]) if match else (None, given)


def _is_url(path: str) -> bool:
    return "://" in path


def _expand_url(url: str) -> list[str]:
    try:
        filesystem, inner = fsspec.core.url_to_fs(url)
        if glob.has_magic(inner):
            found = [filesystem.unstrip_protocol(file) for file in sorted(filesystem.glob(inner))]
        else:
            found = [url] if filesystem.isfile(inner) else []
    except (OSError, ImportError, ValueError) as error:
        raise DataError(f"cannot be reached: {error}", path=url) from error
    if not found:
        raise DataError("there is no such file", path=url)
    return found


def _expand_glob(name: str | None, pattern: str) -> list[Source]:
    found = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not found:
        raise DataError("no file matches this pattern", path=pattern)
    return [_file_source(name, path) for path in found]


def _kind(path: str) -> str | None:
    """The kind that a file's name tells, or None."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        kind = KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if kind == "parquet" else kind
    return KINDS.get(suffixes[-1]) if suffixes else None


def _file_source(name: str | None, path: str) -> Source:
    kind = _kind(path)
    if kind is None:
        raise DataError(f"its kind cannot be told from its name. Accepted are {ACCEPTED}", path=path)
    return Source(name or _stem(path), name is not None, path, kind)


def _stem(path: str) -> str:
    stem = PurePosixPath(path.replace(os.sep, "/")).name
    for suffix in (*COMPRESSIONS, *KINDS):
        stem = stem[: -len(suffix)] if stem.lower().endswith(suffix) and len(stem) > len(suffix) else stem
    return stem


def _near_names(path: str) -> str:
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return f", and no folder {folder!r} either" if folder else ""
    near = difflib.get_close_matches(name, names, n=3)
    return f". Near it: {', '.join(near)}" if near else ""


def _dataset_source(name: str | None, given: str) -> Source:
    """A folder saved by `save_to_disk`, or whatever `datasets.load_dataset` takes, each perhaps with `:split`."""
    split = None
    place = given
    if not os.path.exists(given) and (match := _SPLIT.fullmatch(given)):
        place, split = match[1], match[2]
    if not os.path.isdir(place) and not _HUB_ID.fullmatch(place):
        raise DataError(f"there is no such file or folder{_near_names(place)}", path=given)
    dataset = _load_dataset(given, place, split)
    own_name = _stem(place) if os.path.isdir(place) else place
    return Source(name or own_name, name is not None, given, "dataset", dataset)


def _load_dataset(given: str, place: str, split: str | None) -> Any:
    import datasets

    folder = Path(place)
    saved = folder.is_dir() and any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(place) if saved else datasets.load_dataset(place, split=split)
    except Exception as error:  # datasets raises many kinds; all mean that the user's data set did not load
        what = "the folder" if folder.is_dir() else "there is no such file or folder, and the data set of this id"
        hint = f" To read its files one by one, name them: '{place}/*.jsonl'." if folder.is_dir() else ""
        raise DataError(f"{what} could not be loaded by `datasets`: {error}{hint}", path=given) from error
    if isinstance(loaded, datasets.DatasetDict):
        wanted = split or ("train" if "train" in loaded or len(loaded) != 1 else next(iter(loaded)))
        if wanted not in loaded:
            raise DataError(f"has no split {wanted!r}; its splits are {', '.join(loaded)}", path=given)
        return loaded[wanted]
    return loaded
