"""The layers of a file with an encoder, or with an encoder and a decoder, under the names that
other files have.

T5's are ``enc.blk.0.attn_o``, ``dec.blk.0.attn_o`` and so on. Seen as ``blk.N.attn_output``, the
encoder's first, they are layers like others, and are looked for, checked and placed as these are.
"""

from __future__ import annotations

import re

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.gguf.file import GGUFFile

_LAYER = re.compile(r"(enc\.|dec\.)blk\.(\d+)\.(.+)")


def as_layers(gguf: GGUFFile, arch: Architecture) -> GGUFFile:
    """The file as one of other architectures would be, for as long as this one is open."""
    if not arch.stacks:
        return gguf
    first = {"enc.": 0, "dec.": gguf.get_int(gguf.arch_key("block_count"))}
    renamed = {}
    for name, info in gguf.tensors.items():
        match = _LAYER.fullmatch(name)
        if match is not None and match[1] in arch.stacks:
            rest = re.sub(r"^attn_o\.", "attn_output.", match[3])
            name = f"blk.{first[match[1]] + int(match[2])}.{rest}"
        renamed[re.sub(r"^dec\.output_norm", "output_norm", name)] = info
    return gguf.with_tensors(renamed)
