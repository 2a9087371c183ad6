"""Which files of a repository are the model that was asked for, by llama-server's rules."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

DEFAULT_TAGS = ("Q4_K_M", "Q8_0")
# What stands beside models under names of its own: projectors, importance matrices, drafts.
COMPANIONS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
SPLIT = re.compile(r"(?P<prefix>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf")
TAG = re.compile(r"[-.](?P<tag>[A-Za-z0-9_]+)$")
NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Repo(Struct, frozen=True):
    """``user/name``, and the quantization that is wanted of it ("": any)."""

    id: str
    tag: str = ""

    @staticmethod
    def parse(text: str) -> Repo:
        """Of ``user/name[:tag]``; ValueError."""
        id, _, tag = text.partition(":")
        if not NAME.fullmatch(id):
            raise ValueError(f"{text!r} is no repository: expected USER/NAME or USER/NAME:QUANT")
        return Repo(id, "" if tag == "latest" else tag)


def is_model(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.endswith(".gguf") and not any(part in name for part in COMPANIONS)


def split_of(path: str) -> tuple[str, int, int]:
    """Of ``x-00002-of-00003.gguf``: ("x", 2, 3); of a file that is whole: (its stem, 1, 1)."""
    if found := SPLIT.fullmatch(path):
        return found["prefix"], int(found["index"]), int(found["count"])
    return path.removesuffix(".gguf"), 1, 1


def tag_of(path: str) -> str:
    """The quantization that a name ends with, in capitals; "" if it does not."""
    found = TAG.search(split_of(path)[0])
    return found["tag"].upper() if found else ""


def choose_model(paths: Sequence[str], tag: str) -> str | None:
    """The first file of the model with this tag; without one of a default tag, or any."""
    models = [path for path in paths if is_model(path) and split_of(path)[1] == 1]
    for wanted in [tag] if tag else DEFAULT_TAGS:
        pattern = re.compile(re.escape(wanted) + "[.-]", re.IGNORECASE)
        for path in models:
            if pattern.search(path):
                return path
    return None if tag or not models else models[0]


def all_parts(paths: Sequence[str], first: str) -> list[str]:
    """The files of a model that is split, in their order."""
    prefix, _, count = split_of(first)
    return sorted(path for path in paths if split_of(path)[::2] == (prefix, count)) or [first]


def choose_companion(paths: Sequence[str], model: str, keyword: str) -> str | None:
    """The file with ``keyword`` in its path that is nearest to the model: in the deepest of the
    folders above it, then of the most similar number of bits."""
    folders = model.split("/")[:-1]
    best: tuple[int, int] | None = None
    chosen = None
    for path in paths:
        own = path.split("/")[:-1]
        if not path.endswith(".gguf") or keyword not in path or folders[: len(own)] != own:
            continue
        rank = (-len(own), abs(n_bits(path) - n_bits(model)))
        if best is None or rank < best:
            best, chosen = rank, path
    return chosen


def n_bits(path: str) -> int:
    """4 for Q4_K_M, 16 for F16; 0 if the name does not say."""
    found = re.search(r"\d+", tag_of(path))
    return int(found[0]) if found else 0
