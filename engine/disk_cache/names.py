"""What a page is called: a hash of all that decides its bytes.

``root`` stands for the model and how it computes; a chain begins with that, the adapters of a
request and its salt; each page of ``PAGE_IDS`` tokens hashes the name of the page before it. So
equal names mean equal beginnings, as in vLLM's prefix caching, for every server of a folder.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from msgspec import Struct

KEY_BYTES = 32


def root_of(made_with: Mapping[str, Any]) -> bytes:
    """The name of a model with everything that its pages depend on, all of it JSON."""
    return _digest(json.dumps(made_with, sort_keys=True, default=str).encode())


def beginning(
    root: bytes,
    adapters: Iterable[tuple[str, float]] = (),
    starts: Iterable[int] = (),
    salt: str = "",
) -> bytes:
    """The parent of a chain's first page. ``adapters``: fingerprints of those that count, with
    their scales; ``starts``: the first tokens that have them; ``salt``: what only those know who
    may share the chain."""
    scaled = [[name, scale] for name, scale in adapters if scale]
    own = json.dumps([scaled, list(starts), salt]).encode()
    return _digest(root, own)


class PageName(Struct, frozen=True):
    """A page: the name of the one before it, its own, and the ids of its tokens."""

    root: bytes
    parent: bytes
    key: bytes
    ids: tuple[int, ...]


def chain(
    root: bytes,
    begin: bytes,
    ids: Sequence[int],
    page_size: int,
    contents: Sequence[tuple[int, bytes]] = (),
) -> Iterator[PageName]:
    """The names of the full pages of these ids, each an int64. ``contents``: where among them
    images and sounds begin, and their hashes, of which ids alone have too few bits."""
    parent = begin
    for start in range(0, len(ids) - page_size + 1, page_size):
        own = tuple(ids[start : start + page_size])
        shown = (digest for at, digest in contents if start <= at < start + page_size)
        key = _digest(parent, packed(own), *shown)
        yield PageName(root, parent, key, own)
        parent = key


def beside(root: bytes, name: PageName) -> PageName:
    """A page's name for the model of this root, which has pages of the same tokens."""
    return PageName(root, name.parent, _digest(name.key, root), name.ids)


def packed(ids: Sequence[int]) -> bytes:
    """Ids as they are hashed and stored: int64, little-endian."""
    return struct.pack(f"<{len(ids)}q", *ids)


def _digest(*parts: bytes) -> bytes:
    """Each with its length, so that no two lists of parts are the same bytes."""
    digest = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        digest.update(struct.pack("<Q", len(part)))
        digest.update(part)
    return digest.digest()
