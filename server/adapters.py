"""LoRA adapters by the names that requests call them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_serve.engine.errors import EngineError
from gguf_serve.server.errors import ApiError, invalid
from gguf_serve.server.interface import Engine

if TYPE_CHECKING:
    from gguf_serve.engine.options import AdapterState

log = logging.getLogger(__name__)


def with_name(name: str, engine: Engine) -> AdapterState | None:
    return next((each for each in engine.adapters() if each.name == name), None)


def named(model: str, engine: Engine) -> AdapterState | None:
    """The adapter that a request's ``model`` names: all of it, or what stands behind its last
    colon, as in "base:adapter"."""
    own = with_name(model, engine)
    return with_name(model.rpartition(":")[2], engine) if own is None and ":" in model else own


def below(folder: Path, path: str) -> Path:
    """A file of a folder, by its path from there or a whole one; links are followed before that
    is checked. ApiError for any other."""
    root = folder.resolve()
    try:
        found = (root / path).resolve()
        if found.is_relative_to(root) and found.is_file():
            return found
    except (OSError, ValueError):  # a path with a zero byte, or too long
        pass
    raise ApiError("not_found_error", f"{path[:200]!r} is no file below the --lora-runtime folder")


def check_name(name: str, own_names: Sequence[str]) -> None:
    """ApiError for a name that an adapter cannot have."""
    if not name or not name.isprintable():
        raise invalid(f"lora_name: expected printable characters, got {name!r}")
    if name in own_names:
        raise invalid(f"lora_name: {name!r} is the name of the model itself")


def bring_back(before: Sequence[AdapterState], engine: Engine) -> None:
    """Have an engine that was loaded anew have the adapters of its predecessor, with their
    scales."""
    there = {each.path: each.id for each in engine.adapters()}
    scales = []
    for each in before:
        try:
            if each.path not in there:
                there[each.path] = engine.load_adapter(each.path, each.name).id
        except EngineError as error:
            log.error("the LoRA adapter %s is gone: %s", each.name, error)
        else:
            scales.append((there[each.path], each.scale))
    if before:
        engine.set_adapters(scales)
