"""Finding out at once whether a name means something on the model hub."""

from __future__ import annotations

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from pursuit.errors import ModelError

HUB_TIMEOUT = 15.0  # seconds


def ask_hub(name: str, revision: str | None = None, *, file: str = "config.json") -> None:
    """Ask for a model once, before a download's long retries; one that is in the local cache is not asked for.

    Args:
        name: the model's (or adapter's) id on the hub.
        revision: branch, tag or commit.
        file: the file that shows that it is cached.

    Raises:
        ModelError: the hub has no such model, keeps it behind a login, or cannot be reached.
    """
    if isinstance(try_to_load_from_cache(name, file, revision=revision), str):
        return
    try:
        HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT)
    except HfHubHTTPError as error:
        raise ModelError(
            f"{name}: no folder of this name here, and the model hub does not give it out "
            f"({type(error).__name__}). Is the id right, and does it need a login? A local folder works too."
        ) from error
    except ValueError as error:
        raise ModelError(f"{name}: neither a folder nor an id of the model hub ({error}).") from error
    except Exception as error:  # the hub's HTTP library, and so the kind of its errors, differs by version
        raise ModelError(
            f"{name}: no folder of this name here, and the model hub cannot be reached ({type(error).__name__}). "
            "Give the path of a local folder, or try again with a connection."
        ) from error
