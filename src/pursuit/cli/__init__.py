"""The command line: one module for each command, or for a few that belong together.

A module here holds the flags and help of some commands; what they do is imported when they run, so that `--help` need
not wait for torch.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from cyclopts import CycloptsError, MissingArgumentError
from pydantic import ValidationError
from rich.console import Console

from pursuit.cli import compare, evaluate, finetune, report, select, stages  # noqa: F401  (their commands join the app)
from pursuit.cli.app import app, parse_parameters
from pursuit.errors import PursuitError
from pursuit.settings import Settings, explain

NAMED = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC)

__all__ = ["app", "main", "parse_parameters"]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `pursuit` command: errors of pursuit's own are shown without a traceback."""
    errors = Console(stderr=True)
    _quiet_libraries()
    try:
        app(arguments, exit_on_error=False, print_error=False, error_console=errors)
    except PursuitError as error:
        _fail(errors, str(error))
    except ValidationError as error:
        _fail(errors, explain(error, Settings))
    except CycloptsError as error:
        _fail(errors, _told(error))
    except OSError as error:
        if error.errno not in NAMED or not error.filename:
            raise
        _fail(errors, f"{error.filename}: {error.strerror}.")
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on where it was.")
        sys.exit(130)


def _told(error: CycloptsError) -> str:
    """What is wrong with the command line."""
    if isinstance(error.__cause__, ValidationError):
        return explain(error.__cause__, Settings)
    if isinstance(error, MissingArgumentError) and error.argument and error.argument.name not in (error.keyword, ""):
        command = " ".join(["pursuit", *(error.command_chain or ())])
        return f"{command} needs {error.argument.name}; `{command} --help` says what it is."
    return str(error)


def _quiet_libraries() -> None:
    """Our own progress is enough: no bars of loading weights, no notices to the libraries' developers."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if Path(__file__).parents[1] in Path(filename).parents:  # a notice to the user, not to a programmer
            Console(stderr=True).print(f"note: {message}", markup=False, highlight=False, soft_wrap=True)
        else:
            shown(message, category, filename, *rest)

    warnings.showwarning = show  # type: ignore[assignment]


def _fail(console: Console, message: str) -> None:
    console.print("error:", style="bold red", end=" ")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    sys.exit(2)
