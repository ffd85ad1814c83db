"""An environment for each peer, outside of the repository: ~/.cache/pursuit/peers, or `PURSUIT_CACHE`/peers.

All get the torch of the environment that runs this, so that a comparison is not one of two torches. An environment that
stands is used again; one that could not be finished leaves its log beside it and is tried again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import transformers

MODEL = f"transformers=={transformers.__version__}"
# pip's arguments, one list a call. --no-deps where a package asks for versions that its code does not need.
PEERS: dict[str, list[list[str]]] = {
    "bergson": [
        [MODEL, "accelerate", "datasets", "jinja2", "jaxtyping>=0.3.3", "ml_dtypes", "natsort", "scipy", "peft>=0.17.0",
         "petname", "pyarrow", "pyyaml", "simple-parsing", "psutil"],
        ["--no-deps", "bergson", "torchopt", "optree"],
    ],
    "dattri-llm": [["dattri-llm[transformers,attribution]", MODEL]],
    "logix": [
        ["--no-deps", "--ignore-requires-python", "logix-ai"],
        ["einops", "scipy", "pyyaml", "tqdm", MODEL, "accelerate"],
    ],
    "trak": [["traker", MODEL, "accelerate"]],
}  # fmt: skip
DISTRIBUTION = {"logix": "logix-ai", "trak": "traker"}


class InstallError(Exception):
    """An environment could not be made."""


def folder() -> Path:
    """Where the environments lie."""
    cache = os.environ.get("PURSUIT_CACHE")
    return (Path(cache) if cache else Path.home() / ".cache" / "pursuit") / "peers"


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there.

    Raises:
        InstallError: pip failed; the message names its log.
    """
    place = folder() / peer
    python, log = place / "bin" / "python", folder() / f"{peer}.log"
    if (place / "installed").exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    constraints = folder() / "constraints.txt"
    build = torch.__version__.split("+")[0]
    constraints.write_text(f"torch=={build}\n")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    with log.open("w") as output:
        for call in [[f"torch=={build}", "numpy"], *PEERS[peer]]:
            command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(constraints), *call]
            if subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode:
                raise InstallError(f"{peer} could not be installed; see {log}")
    (place / "installed").touch()
    return python


def version_of(peer: str) -> str:
    """The peer's version in its environment."""
    name = DISTRIBUTION.get(peer, peer)
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    return subprocess.run([str(python_of(peer)), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def version_here(peer: str) -> str:
    """The peer's version in this environment; empty where it has none, and is perhaps not there at all."""
    try:
        return importlib.metadata.version(DISTRIBUTION.get(peer, peer))
    except importlib.metadata.PackageNotFoundError:
        return ""


def main() -> None:
    """Install the peers named on the command line, all without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"{', '.join(PEERS)}; all of them if none is named")
    peers = parser.parse_args().peers
    if unknown := sorted(set(peers) - set(PEERS)):
        parser.error(f"there is no peer {', '.join(unknown)}; they are {', '.join(PEERS)}")
    for peer in peers or PEERS:
        try:
            python_of(peer)
            print(peer, version_of(peer))
        except InstallError as error:
            print(error)


if __name__ == "__main__":
    main()
