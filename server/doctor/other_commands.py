"""Programs of others that are called ``serve`` too: Ray's, npm's, another environment's.

Packages do not hear of each other's commands: the last one that is installed writes its own over
what is there, and pip removes that with whichever of them goes first. ``gguf-serve`` is always
ours.
"""

from __future__ import annotations

import shutil
from importlib.metadata import entry_points

from gguf_serve.server.version import NAME

COMMAND = "serve"
MODULE = b"gguf_serve"  # what a script of ours imports
HEAD = 4096  # bytes in which scripts do that


def notices() -> list[str]:
    """What a person should know who types ``serve``: a sentence for each finding."""
    found = shutil.which(COMMAND)
    others = other_owners()
    said = []
    if found is not None and not is_ours(found):
        whose = f" of {' or '.join(others)}" if others else ""
        said.append(f"{found} is another program{whose}: type {NAME} instead of {COMMAND}")
    elif found is not None and others:
        names = " and ".join(others)
        said.append(
            f"{found} was {names}'s before it was ours: pip install --force-reinstall --no-deps "
            f"{' '.join(others)} gives it back, and {NAME} is ours in any case"
        )
    return said


def other_owners() -> list[str]:
    """Packages of this environment that have a command of that name, without ours."""
    entries = entry_points(group="console_scripts", name=COMMAND)
    names = {entry.dist.name for entry in entries if entry.dist is not None}
    return sorted(names - {NAME})


def is_ours(path: str) -> bool:
    """Whether a command is this package's, in whatever environment."""
    try:
        with open(path, "rb") as file:
            return MODULE in file.read(HEAD)
    except OSError:
        return False
