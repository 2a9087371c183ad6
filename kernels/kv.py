"""The KV cache's device memory: pages of tokens for every layer (kv.cl has the layout)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl

from kernels.device import Device
from kernels.tensor import Tensor, empty

PAGE = 32  # tokens per page
Bytes = npt.NDArray[np.uint8]
KV_TYPES: dict[str, np.dtype[Any]] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}


@dataclass(frozen=True, slots=True)
class KVShape:
    """KV heads of a layer and the sizes of a head's K and V."""

    n_kv: int
    head: int
    head_v: int

    @property
    def head_v_padded(self) -> int:
        return -(-self.head_v // 16) * 16

    def page_elements(self) -> tuple[int, int]:
        """Elements of one page of K and of V."""
        return self.n_kv * self.head * PAGE, self.n_kv * self.head_v_padded * PAGE


@dataclass(frozen=True, slots=True)
class LayerKV:
    """K and V pages of one layer."""

    shape: KVShape
    k: Tensor
    v: Tensor

    @property
    def defines(self) -> list[str]:
        """How K and V are stored; float unless said otherwise."""
        half = np.dtype(np.float16)
        return ["K_F16"] * (self.k.dtype == half) + ["V_F16"] * (self.v.dtype == half)


class KVPages:
    """Pages of all layers; page ``p`` of the engine's page tables is page p of each."""

    def __init__(
        self, device: Device, layers: Sequence[KVShape], n_pages: int, type_k: str, type_v: str
    ) -> None:
        """``type_k`` and ``type_v``: keys of KV_TYPES."""
        self.n_pages = n_pages
        self._queue = device.queue
        self.layers = []
        for shape in layers:
            n_k, n_v = shape.page_elements()
            k = empty(device, (n_pages, n_k), KV_TYPES[type_k])
            v = empty(device, (n_pages, n_v), KV_TYPES[type_v])
            self.layers.append(LayerKV(shape, k, v))

    @property
    def n_bytes(self) -> int:
        return sum(layer.k.n_bytes + layer.v.n_bytes for layer in self.layers)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all layers."""
        return self.n_bytes // self.n_pages

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
        """K and V of a layer with the bytes of a page."""
        tensors = (self.layers[layer].k, self.layers[layer].v)
        return [(t, t.n_bytes // self.n_pages) for t in tensors if t.n_bytes]

    def copy_page(self, source: int, target: int) -> None:
        """Enqueue the copy of a page in every layer."""
        for layer in self.layers:
            for tensor in (layer.k, layer.v):
                size = tensor.n_bytes // self.n_pages
                if size == 0:  # a layer without attention
                    continue
                cl.enqueue_copy(
                    self._queue, tensor.buffer, tensor.buffer, byte_count=size,
                    src_offset=source * size, dst_offset=target * size,
                )  # fmt: skip
