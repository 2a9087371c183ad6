"""The KV cache's device memory: pages of tokens for every layer (kv.cl has the layout)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyopencl as cl
from msgspec import Struct

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import DeviceError
from gguf_serve.kernels.opencl.tensor import Tensor, empty
from gguf_serve.kernels.quantization import quants

PAGE = 32  # tokens per page
LAYOUT = 1  # one more whenever the bytes of a page or a state come to mean something else
# Bytes of a page from which on a layer's K or V lie on huge pages. Of smaller ones too many tokens
# would fit: those of SmolLM2's first question took 120 MiB, on small pages 2. Attention is as fast:
# pages are anywhere in memory, and it asks for the next ones itself.
HUGE_FROM = 64 << 10
SLABS = 4  # buffers that K or V of a layer may lie in (kv.cl)
Bytes = npt.NDArray[np.uint8]
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


class KVShape(Struct, frozen=True):
    """KV heads of a layer and the sizes of a head's K and V.

    joint: K and V are the same, kept once: as V, of the type of K. rows: of a page, if they are
    not its tokens. block: tokens that share a K.
    """

    n_kv: int
    head: int
    head_v: int
    joint: bool = False
    rows: int = PAGE
    block: int = 1

    @property
    def head_v_padded(self) -> int:
        return -(-self.head_v // 16) * 16

    def page_bytes(self, type_k: str, type_v: str) -> tuple[int, int]:
        """Bytes of a page's K and V; the last block of a head may be padding in part."""
        if self.joint:
            return 0, self.rows * self.n_kv * _head_bytes(self.head_v_padded, type_k)
        return (
            PAGE // self.block * self.n_kv * _head_bytes(self.head, type_k),
            self.rows * self.n_kv * _head_bytes(self.head_v_padded, type_v),
        )


def _head_bytes(n: int, name: str) -> int:
    kind = quants.by_name(name.upper())
    return -(-n // kind.block_elements) * kind.block_bytes


class Pages(Struct, frozen=True):
    """All pages of a layer's K, or V: uint8 [pages, bytes of a page].

    They lie in one buffer or, where the device does not allocate as much at once, in slabs: as
    many pages each, the last maybe fewer.
    """

    slabs: tuple[Tensor, ...]

    @property
    def n_bytes(self) -> int:
        return sum(slab.n_bytes for slab in self.slabs)

    @property
    def n_pages(self) -> int:
        return sum(slab.shape[0] for slab in self.slabs)

    @property
    def page_bytes(self) -> int:
        return self.slabs[0].shape[1]

    @property
    def arg(self) -> tuple[Tensor, ...]:
        """Of a kernel's PAGES_ARG: the buffer, or SLABS of which the last may repeat the first."""
        slabs = self.slabs
        return slabs + slabs[:1] * (SLABS - len(slabs)) if len(slabs) > 1 else slabs

    def place(self, page: int) -> tuple[Any, int]:
        """The buffer that has a page, and where in it, in bytes."""
        slab, page = divmod(page, self.slabs[0].shape[0])
        return self.slabs[slab].buffer, page * self.page_bytes


class LayerKV(Struct, frozen=True):
    """K and V of one layer."""

    shape: KVShape
    k: Pages
    v: Pages
    types: tuple[str, str]

    @property
    def defines(self) -> list[str]:
        """How K and V are stored."""
        kinds = [f"{x}_TYPE=KV_{name.upper()}" for x, name in zip("KV", self.types, strict=True)]
        shared = [f"K_TOKENS={self.shape.block}"] if self.shape.block > 1 else []
        slabs = self.k.slabs
        return [
            *kinds, *shared, *([f"SLAB_PAGES={slabs[0].shape[0]}"] if len(slabs) > 1 else [])
        ]  # fmt: skip

    @property
    def token_bytes(self) -> int:
        return sum(self.shape.page_bytes(*self.types)) // PAGE


class KVPages:
    """Pages of all layers; page ``p`` of the engine's page tables is page p of each.

    But for sliding-window rings: layers whose pages belong to slots, as many to each, for the last
    tokens.
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
        else 0. Raises DeviceError for more than the device can have."""
        self.n_pages, self._rings = n_pages, rings or (0,) * len(layers)
        self._queue, self._is_meta = device.queue, device.is_meta
        self._transfers: list[cl.Event] = []  # of pages, to or from the host
        self.layers = []
        for shape, n_ring in zip(layers, self._rings, strict=True):
            sizes = shape.page_bytes(type_k, type_v)
            n, most = (n_ring, 1) if n_ring else (n_pages, SLABS)
            slab = _slab_pages(device, n, max(sizes), most)
            k, v = (
                Pages(tuple(
                    empty(device, (min(slab, n - at), size), np.uint8, gradual=size < HUGE_FROM)
                    for at in range(0, n, slab)
                ))
                for size in sizes
            )  # fmt: skip
            types = (type_k, type_k if shape.joint else type_v)
            self.layers.append(LayerKV(shape, k, v, types))

    @property
    def n_bytes(self) -> int:
        return sum(layer.k.n_bytes + layer.v.n_bytes for layer in self.layers)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page in all layers that have it."""
        return sum(p.page_bytes for i in range(len(self.layers)) for p in self._paged(i))

    def read_page(self, layer: int, page: int, into: Bytes) -> int:
        """Enqueue: ``into`` begins with a layer's K and V of a page, of nothing for a layer without
        attention, once ``finish`` has been called; returns their bytes."""
        return self._transfer(layer, page, into, is_read=True)

    def write_page(self, layer: int, page: int, data: Bytes) -> int:
        """Enqueue: a layer's K and V of a page are what data begins with, which stays as it is
        until ``finish``; returns their bytes."""
        return self._transfer(layer, page, data, is_read=False)

    def finish(self) -> None:
        """Wait for what was read and written."""
        if self._transfers:
            self._queue.finish()
            self._transfers.clear()

    def _transfer(self, layer: int, page: int, data: Bytes, *, is_read: bool) -> int:
        """To wait for each piece by itself takes a CPU's driver three times as long."""
        at = 0
        for pages in self._paged(layer):
            here = data[at : at + pages.page_bytes]
            buffer, offset = pages.place(page)
            if is_read:
                event = cl.enqueue_copy(
                    self._queue, here, buffer, src_offset=offset, is_blocking=False
                )
            else:
                event = cl.enqueue_copy(
                    self._queue, buffer, here, dst_offset=offset, is_blocking=False
                )
            self._transfers.append(event)  # a destructor would wait
            at += pages.page_bytes
        return at

    def _paged(self, layer: int) -> list[Pages]:
        """K and V of a layer; nothing for a ring, or without attention."""
        both = () if self._rings[layer] else (self.layers[layer].k, self.layers[layer].v)
        return [pages for pages in both if pages.n_bytes]

    def copy_page(self, source: int, target: int) -> None:
        """Enqueue the copy of a page in every layer (copy-on-write)."""
        if self._is_meta:
            return
        for layer in range(len(self.layers)):
            for pages in self._paged(layer):
                (source_buffer, begin), (target_buffer, to) = map(pages.place, (source, target))
                cl.enqueue_copy(
                    self._queue, target_buffer, source_buffer, byte_count=pages.page_bytes,
                    src_offset=begin, dst_offset=to,
                )  # fmt: skip


def _slab_pages(device: Device, n_pages: int, page_bytes: int, most: int) -> int:
    """Pages of a slab, of at most ``most``; DeviceError names sizes and what makes them less."""
    limit = device.max_allocation
    if n_pages * page_bytes <= limit:
        return max(n_pages, 1)
    n = limit // page_bytes
    if n * most < n_pages:
        raise DeviceError(
            f"{device.info.name}: K or V of one layer takes {n_pages * page_bytes >> 20} MiB, "
            f"at most {limit >> 20} MiB can be allocated at once, and {most} times as much used; "
            "smaller: --ctx-size, --cache-type-k q8_0, --cache-type-v q8_0"
        )
    return n
