"""The KV cache's device memory: pages of tokens for every layer (kv.cl has the layout)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyopencl as cl

from kernels.device import Device
from kernels.tensor import Tensor, empty

PAGE = 32  # tokens per page
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
