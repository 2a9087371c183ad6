"""What a sequence keeps in its slot beside pages, and copies of it in the host's memory.

Recurrent layers keep a row per slot, layers with a sliding window a ring of pages for its last
tokens (a sliding-window ring). A copy is what a slot held at a position of its sequence; put into
another slot, the sequence can go on from there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyopencl as cl
from msgspec import Struct

from gguf_serve.kernels.attention.kv import PAGE, Bytes
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tensor import Tensor, zeros


class _Rows(Struct, frozen=True):
    """A tensor whose row i belongs to slot i."""

    queue: cl.CommandQueue
    tensor: Tensor

    @property
    def most_bytes(self) -> int:
        return self.tensor.n_bytes // self.tensor.shape[0]

    def spans(self, slot: int, position: int) -> list[tuple[int, int]]:
        """(offset, size) in bytes of what slot ``slot`` keeps at a position."""
        return [(slot * self.most_bytes, self.most_bytes)]


class _Ring(Struct, frozen=True):
    """A tensor of ``n_pages`` pages per slot; page i of a sequence is page i mod n_pages."""

    queue: cl.CommandQueue
    tensor: Tensor
    n_pages: int
    window: int  # tokens that the next one sees, itself included

    @property
    def _page_bytes(self) -> int:
        return self.tensor.n_bytes // self.tensor.shape[0]

    @property
    def most_bytes(self) -> int:
        return min(self.n_pages, (self.window + PAGE - 3) // PAGE + 1) * self._page_bytes

    def spans(self, slot: int, position: int) -> list[tuple[int, int]]:
        """The pages of the tokens that the one at ``position`` sees."""
        first = max(0, position - self.window + 1) // PAGE
        end = -(-position // PAGE)
        runs: list[tuple[int, int]] = []
        while first < end:
            at = first % self.n_pages
            n = min(end - first, self.n_pages - at)
            runs.append(((slot * self.n_pages + at) * self._page_bytes, n * self._page_bytes))
            first += n
        return runs


class SlotStates:
    """The states of all slots, on the devices, and numbered copies of them on the host. What is on
    meta devices counts, and is not copied: another process has it, or nobody yet."""

    def __init__(self, n_slots: int) -> None:
        self._n_slots = n_slots
        self._parts: list[_Rows | _Ring] = []
        self._copies: dict[int, tuple[int, Bytes]] = {}  # by number: position, bytes
        self._kept: dict[tuple[int, int], Bytes] = {}  # by part and slot

    def rows(self, device: Device, *shape: int) -> Tensor:
        """A new state, float32 [slots, *shape]."""
        tensor = zeros(device, (self._n_slots, *shape))
        self._parts.append(_Rows(device.queue, tensor))
        return tensor

    def ring(self, device: Device, tensor: Tensor, window: int) -> None:
        """Take a layer's K or V, [slots * pages, ...], for a state."""
        n_pages = tensor.shape[0] // self._n_slots
        self._parts.append(_Ring(device.queue, tensor, n_pages, window))

    @property
    def copy_bytes(self) -> int:
        """The most bytes of a copy; 0 if slots keep nothing beside pages."""
        return sum(part.most_bytes for part in self._parts)

    @property
    def is_recurrent(self) -> bool:
        """Whether a slot's rows depend on every token before, so that none can be taken back."""
        return any(isinstance(part, _Rows) for part in self._parts)

    def keep(self, slot: int) -> None:
        """Enqueue: remember what slot ``slot`` has in its rows, for ``put_back``."""
        for i, part in enumerate(self._here):
            if isinstance(part, _Rows):
                if (i, slot) not in self._kept:
                    self._kept[i, slot] = np.empty(part.most_bytes, np.uint8)
                cl.enqueue_copy(
                    part.queue, self._kept[i, slot], part.tensor.buffer,
                    src_offset=slot * part.most_bytes, is_blocking=False,
                )  # fmt: skip

    def put_back(self, slot: int) -> None:
        """Enqueue: slot ``slot`` has in its rows what it had at its last ``keep``."""
        for i, part in enumerate(self._here):
            if isinstance(part, _Rows):
                cl.enqueue_copy(
                    part.queue, part.tensor.buffer, self._kept[i, slot],
                    dst_offset=slot * part.most_bytes, is_blocking=False,
                )  # fmt: skip

    def claim(self, copy: int, position: int) -> bool:
        """Host memory for copy number ``copy``, of a position; whether it could be had."""
        self._copies.pop(copy, None)
        try:
            self._copies[copy] = position, np.empty(self.copy_bytes_at(position), np.uint8)
        except MemoryError:
            return False
        return True

    def save(self, slot: int, copy: int) -> None:
        """Enqueue: copy number ``copy`` is what slot ``slot`` keeps at the position for which it
        was claimed."""
        position, array = self._copies[copy]
        for part, offset, here in _pieces(array, self._spans(slot, position)):
            buffer = part.tensor.buffer
            cl.enqueue_copy(part.queue, here, buffer, src_offset=offset, is_blocking=False)

    def restore(self, slot: int, copy: int) -> None:
        """Enqueue: slot ``slot`` keeps what copy number ``copy`` is."""
        position, array = self._copies[copy]
        for part, offset, here in _pieces(array, self._spans(slot, position)):
            buffer = part.tensor.buffer
            cl.enqueue_copy(part.queue, buffer, here, dst_offset=offset, is_blocking=False)

    def copy_bytes_at(self, position: int) -> int:
        """The bytes of a copy at a position."""
        return sum(size for _, _, size in self._spans(0, position))

    def read_copy(self, copy: int) -> Bytes:
        """The bytes of a copy, when they are there."""
        for part in self._here:
            part.queue.finish()
        return self._copies[copy][1]

    def write_copy(self, copy: int, position: int, array: Bytes) -> None:
        """Copy number ``copy`` is these bytes, of a position."""
        if array.nbytes != self.copy_bytes_at(position):
            raise ValueError(f"{array.nbytes} bytes are no state at {position}")
        self._copies[copy] = position, array

    def _spans(self, slot: int, position: int) -> list[_Span]:
        return [(part, *span) for part in self._here for span in part.spans(slot, position)]

    @property
    def _here(self) -> list[_Rows | _Ring]:
        return [part for part in self._parts if part.tensor.buffer is not None]


_Span = tuple[_Rows | _Ring, int, int]  # offset and size in bytes


def _pieces(array: Bytes, spans: list[_Span]) -> Iterator[tuple[_Rows | _Ring, int, Bytes]]:
    """Each span's place in the tensor, and its bytes in the copy."""
    at = 0
    for part, offset, size in spans:
        yield part, offset, array[at : at + size]
        at += size
