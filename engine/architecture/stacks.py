"""The layers of a file with an encoder, with an encoder and a decoder, or with convolutions, under
the names that other files have.

T5's are ``enc.blk.0.attn_o``, ``dec.blk.0.attn_o`` and so on. Seen as ``blk.N.attn_output``, the
encoder's first, they are layers like others, and are looked for, checked and placed as these are.
So are WavTokenizer's, ``posnet.0.conv1`` and ``convnext.0.dw``, whose convolutions are seen as
matrices: a row for each output channel, its columns in the file's order (channel, tap).
"""

from __future__ import annotations

import re
from math import prod

from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.gguf.header import TensorInfo

_LAYER = re.compile(r"(enc\.|dec\.|posnet\.|convnext\.)(?:blk\.)?(\d+)\.(.+)")
CONVOLVED = "posnet."  # the stack of files with convolutions
_NAMES = {"attn_o": "attn_output", "pw1": "ffn_up", "pw2": "ffn_down"}


def as_layers(gguf: GGUFFile, arch: Architecture) -> GGUFFile:
    """The file as one of other architectures would be, for as long as this one is open."""
    if not arch.stacks:
        return gguf
    first = {"enc.": 0, "posnet.": 0, "dec.": gguf.get_int(gguf.arch_key("block_count"))}
    if CONVOLVED in arch.stacks:
        first["convnext."] = gguf.get_int(gguf.arch_key("posnet.block_count"))
    renamed = {}
    for name, info in gguf.tensors.items():
        match = _LAYER.fullmatch(name)
        if match is not None and match[1] in arch.stacks:
            own, _, end = match[3].partition(".")
            name = f"blk.{first[match[1]] + int(match[2])}.{_NAMES.get(own, own)}.{end}"
        seen = _as_matrix(info) if CONVOLVED in arch.stacks else info
        renamed[re.sub(r"^dec\.output_norm", "output_norm", name)] = seen
    return gguf.with_tensors(renamed)


def _as_matrix(info: TensorInfo) -> TensorInfo:
    """A convolution's weights as a matrix, and what is one row of values as these."""
    *columns, n_rows = info.shape
    shape = (n_rows,) if prod(columns) == 1 else (prod(columns), n_rows)
    return replace(info, shape=shape)
