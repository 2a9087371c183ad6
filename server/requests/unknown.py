"""Fields that nobody here knows: none is dropped in silence, so each is told of once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from typing import Any

import msgspec

from gguf_serve.server.errors import shown

log = logging.getLogger(__name__)
KNOWN = "gguf_serve.fields"  # the key in a request's scope of the names that its route knows
MOST_LOOKED_AT = 256  # fields of a body
MOST_TOLD = 1024  # names in the life of a server: clients may invent any number


def known_fields(bodies: Iterable[Any], also: Iterable[str]) -> frozenset[str] | None:
    """The names in bodies of these types, and ``also``; None where they are not fields."""
    known = set(also)
    for body in bodies:
        if not (isinstance(body, type) and issubclass(body, msgspec.Struct)):
            return None
        known.update(body.__struct_encode_fields__)
    return frozenset(known)


class UnknownFields:
    """What has been told of already, by path."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def note(self, path: str, names: Iterable[str], known: frozenset[str]) -> None:
        """Warn of those that are not known, if they are new."""
        for name in islice(names, MOST_LOOKED_AT):
            if name not in known and (path, name) not in self._told:
                if len(self._told) >= MOST_TOLD:
                    return
                self._told.add((path, name))
                log.warning("%s: the field %s is not known here: ignored", path, shown(name))
