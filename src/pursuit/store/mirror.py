"""A folder's files on object storage: anything that fsspec opens (s3://, gs://, az://, file://, …).

The local folder stays what is read, memory-mapped; the mirror is where finished files go at once, and where files come
from that another machine has made.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import fsspec

from pursuit.errors import SettingsError, StoreError
from pursuit.files import atomic_path, one_at_a_time, read_json, write_json

RECORD = "mirror.json"  # in the local folder: where its mirror is


class _Gone(Exception):
    """A file that was listed is not there any more."""


class Mirror:
    """One folder on object storage.

    Args:
        url: as fsspec takes it; credentials come from the environment, as its drivers read them.

    Raises:
        SettingsError: the URL's kind is not known, or its driver is not installed (named).
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self.files, self.root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise SettingsError(f"store = {url!r}: {error}.") from error

    def push(self, path: Path, name: str) -> None:
        """Copy a finished local file there."""
        remote = f"{self.root}/{name}"
        try:
            self.files.makedirs(remote.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(path), remote)
        except OSError as error:
            raise StoreError(f"{self.url}/{name}: cannot be written ({error}). Start again when it can.") from error
        self.names.add(name)

    def pull(self, name: str, path: Path) -> bool:
        """Copy a file from there, whole or not at all; False where there is none."""
        if name not in self.names:
            return False
        try:
            with atomic_path(path) as partial:
                self._get(name, partial)
        except _Gone:
            return False
        except OSError as error:
            raise StoreError(f"{self.url}/{name}: cannot be read ({error}). Start again when it can.") from error
        return True

    def _get(self, name: str, partial: Path) -> None:
        try:
            self.files.get_file(f"{self.root}/{name}", str(partial))
        except FileNotFoundError as error:  # there and here are told apart: here it would be no folder to write in
            raise _Gone from error

    @cached_property
    def names(self) -> set[str]:
        """Files that lie there, as paths below the URL; listed once."""
        self.files.invalidate_cache()
        try:
            found = self.files.find(self.root)
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StoreError(f"{self.url}: cannot be listed ({error}).") from error
        root = self.root.strip("/") + "/"
        return {name.strip("/").removeprefix(root) for name in found}


def mirror_of(folder: Path) -> Mirror | None:
    """The mirror that was set for a folder, if one was."""
    path = folder / RECORD
    return Mirror(read_json(path)["url"]) if path.exists() else None


def set_mirror(folder: Path, url: str) -> None:
    """From now on what is finished in `folder` also goes to `url`."""
    Mirror(url)  # an unknown kind is found now
    with one_at_a_time(folder):
        if not (folder / RECORD).exists():
            write_json(folder / RECORD, {"url": url})
