"""The KV cache's device memory: pages of tokens for every layer (kv.cl has the layout)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyopencl as cl

from kernels import quants
from kernels.device import Device
from kernels.tensor import Tensor, empty

PAGE = 32  # tokens per page
Bytes = npt.NDArray[np.uint8]
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


@dataclass(frozen=True, slots=True)
class KVShape:
    """KV heads of a layer and the sizes of a head's K and V."""

    n_kv: int
    head: int
    head_v: int

    @property
    def head_v_padded(self) -> int:
        return -(-self.head_v // 16) * 16

    def token_bytes(self, type_k: str, type_v: str) -> tuple[int, int]:
        """Bytes of a token's K and V; the last block of a head may be padding in part."""
        return (
            self.n_kv * _head_bytes(self.head, type_k),
            self.n_kv * _head_bytes(self.head_v_padded, type_v),
        )


def _head_bytes(n: int, name: str) -> int:
    kind = quants.by_name(name.upper())
    return -(-n // kind.block_elements) * kind.block_bytes


@dataclass(frozen=True, slots=True)
class LayerKV:
    """K and V pages of one layer: uint8 [pages, bytes of a page]."""

    shape: KVShape
    k: Tensor
    v: Tensor
    types: tuple[str, str]

    @property
    def defines(self) -> list[str]:
        """How K and V are stored."""
        return [f"{x}_TYPE=KV_{name.upper()}" for x, name in zip("KV", self.types, strict=True)]

    @property
    def token_bytes(self) -> int:
        return sum(self.shape.token_bytes(*self.types))


class KVPages:
    """Pages of all layers; page ``p`` of the engine's page tables is page p of each.

    But for rings: layers whose pages belong to slots, as many to each, for the last tokens.
    """

    def __init__(
        self,
        device: Device,
        layers: Sequence[KVShape],
        n_pages: int,
        type_k: str,
        type_v: str,
        rings: Sequence[int] = (),
    ) -> None:
        """``type_k`` and ``type_v``: of KV_TYPES. ``rings``: a layer's pages if it is a ring,
        else 0."""
        self.n_pages, self._rings = n_pages, rings or (0,) * len(layers)
        self._queue = device.queue
        self.layers = []
        for shape, n_ring in zip(layers, self._rings, strict=True):
            k, v = (
                empty(device, (n_ring or n_pages, PAGE * n_bytes), np.uint8)
                for n_bytes in shape.token_bytes(type_k, type_v)
            )
            self.layers.append(LayerKV(shape, k, v, (type_k, type_v)))

    @property
    def n_bytes(self) -> int:
        return sum(layer.k.n_bytes + layer.v.n_bytes for layer in self.layers)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all layers that have it."""
        return sum(size for i in range(len(self.layers)) for _, size in self._tensors(i))

    def read_page(self, layer: int, page: int) -> list[Bytes]:
        """A layer's K and V of a page; nothing for a layer without attention."""
        parts = []
        for tensor, size in self._tensors(layer):
            parts.append(np.empty(size, np.uint8))
            cl.enqueue_copy(self._queue, parts[-1], tensor.buffer, src_offset=page * size)
        return parts

    def write_page(self, layer: int, page: int, data: Bytes) -> int:
        """Take a layer's K and V of a page from the beginning of data; returns their bytes."""
        at = 0
        for tensor, size in self._tensors(layer):
            part = data[at : at + size]
            cl.enqueue_copy(self._queue, tensor.buffer, part, dst_offset=page * size)
            at += size
        return at

    def _tensors(self, layer: int) -> list[tuple[Tensor, int]]:
        """K and V of a layer with the bytes of a page; nothing for a ring."""
        tensors = () if self._rings[layer] else (self.layers[layer].k, self.layers[layer].v)
        return [(t, t.n_bytes // self.n_pages) for t in tensors if t.n_bytes]

    def copy_page(self, source: int, target: int) -> None:
        """Enqueue the copy of a page in every layer."""
        for layer in range(len(self.layers)):
            for tensor, size in self._tensors(layer):
                cl.enqueue_copy(
                    self._queue, tensor.buffer, tensor.buffer, byte_count=size,
                    src_offset=source * size, dst_offset=target * size,
                )  # fmt: skip
