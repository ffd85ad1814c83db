"""A run's tokens: those of the rows that it began with, and of the files appended later."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from pursuit.encoding import EncodedPool, encode_pool
from pursuit.encoding.store import MANIFEST
from pursuit.run.folder import Part, RunFolder
from pursuit.run.given import Given
from pursuit.run.parts import JoinedRows
from pursuit.settings import Settings

Rows = EncodedPool | JoinedRows


class Tokens:
    """Encoded where they are missing.

    Args:
        folder, settings, given: the run's.
    """

    def __init__(self, folder: RunFolder, settings: Settings, given: Given) -> None:
        self.folder, self.settings, self.given = folder, settings, given
        self._parts: list[EncodedPool] = []

    def encode(self) -> Rows:
        """Tokens and response masks of every usable row."""
        return self._joined(self.parts())

    def parts(self) -> list[EncodedPool]:
        """The same, part by part."""
        parts = self.folder.parts(self.settings.pool)
        if len(self._parts) < len(parts):
            for part in parts[len(self._parts) :]:
                with self.folder.timed("encode", stood=(part.encoded / MANIFEST).exists()):
                    self._parts.append(self._encode(part))
            self.folder.begin(self.settings)
        return self._parts

    def manifests(self) -> list[Mapping[str, Any]]:
        """What the tokens of each part are: counts, settings, checksums."""
        return [rows.manifest for rows in self.parts()]

    def encode_new(self, part: Part) -> None:
        """Tokens of a part that has not joined the run yet: rows that cannot be used are found before it does."""
        if (part.encoded / MANIFEST).exists():  # finished, but killed before it had joined: perhaps of other files
            shutil.rmtree(part.encoded)
        with self.folder.timed("encode"):
            self._encode(part)

    def _encode(self, part: Part) -> EncodedPool:
        return encode_pool(self.given.pool(part.paths), self.given.encoder, part.encoded)

    def opened(self) -> Rows:
        """The tokens as they stand, without a look at the pool's files; for jobs on other machines.

        Raises:
            StoreError: they are not there, or damaged.
        """
        if not self._parts:
            self._parts = [EncodedPool(part.encoded) for part in self.folder.parts(self.settings.pool)]
        return self._joined(self._parts)

    def checked(self) -> Rows:
        """The tokens as they stand, if the pool's files are still those that were encoded; nothing is written.

        Raises:
            StoreError: they are others.
        """
        parts = self.folder.parts(self.settings.pool)
        return self._joined([self._encode(part) for part in parts])

    def pool_changed(self) -> bool:
        """Whether the pool's files are no longer those that were encoded."""
        self.opened()
        parts = self.folder.parts(self.settings.pool)
        return any(
            rows.manifest["settings"]["pool"] != self.given.pool(part.paths).fingerprint()
            for part, rows in zip(parts, self._parts, strict=True)
        )

    def _joined(self, encoded: Sequence[EncodedPool]) -> Rows:
        """The parts' rows as one."""
        if len(encoded) == 1:
            return encoded[0]
        first_rows, row = [], 0
        for part in encoded:
            first_rows.append(row)
            row += len(part) + sum(refusal.row is not None for refusal in part.refused)
        return JoinedRows(encoded, first_rows)
