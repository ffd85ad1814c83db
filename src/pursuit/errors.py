"""Errors that a user can act on: each message says what is wrong, where, and what would be right."""

from __future__ import annotations


class PursuitError(Exception):
    """Base of every error that pursuit raises on purpose; the command line prints it without a traceback."""


class DataError(PursuitError):
    """A row or a file of the pool (or of the target) cannot be used."""

    def __init__(self, reason: str, *, path: str | None = None, line: int | None = None) -> None:
        self.reason, self.path, self.line = reason, path, line
        place = "" if path is None else f"{path}: " if line is None else f"{path}, line {line}: "
        super().__init__(place + reason)


class SettingsError(PursuitError):
    """A setting has an unknown name or a value that cannot be accepted."""


class ModelError(PursuitError):
    """A model, tokenizer or adapter cannot be loaded or used."""


class StoreError(PursuitError):
    """Stored tokens, checkpoints or features are missing, damaged or made with other settings."""


class RunError(PursuitError):
    """A run folder cannot be used: not writable, in use, or made with other settings."""


class SelectionError(PursuitError):
    """A selection cannot be made from what was given."""
