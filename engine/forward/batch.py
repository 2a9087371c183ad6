"""A step's inputs: a plan's chunks as integers in the buffers that the kernels read."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.ngrams import NGrams
from gguf_serve.engine.architecture.switch import Switch
from gguf_serve.engine.forward.positions import grids_of
from gguf_serve.engine.forward.positions import positions as grid_positions
from gguf_serve.engine.recording.step import StepInputs
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.kernels.attention.attention import PART, AttentionInputs
from gguf_serve.kernels.attention.kv import PAGE
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tape import N_COUNTS, Counts
from gguf_serve.kernels.opencl.tensor import (
    Region,
    Tensor,
    empty,
    regions,
    upload,
    works_in_place,
    write,
)
from gguf_serve.kernels.rows.topk import topk_buffers

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class MediaShape(Struct, frozen=True):
    """Embeddings that come from an encoder: values of a row, and whether the tokens of an
    image see each other whatever their order."""

    width: int
    together: bool


class TokenMask(Protocol):
    """What says which tokens may follow, once the step is on its way."""

    @property
    def is_ready(self) -> bool:
        """Whether that is known."""
        ...

    def begin(self, when_done: Callable[[], None] | None = None) -> None:
        """Start to find out, in another thread; ``when_done`` is called there."""
        ...

    def fill(self, words: Ints, until: float | None = None) -> bool:
        """Write a bit for each token: int32 [ceil(n_vocab / 32)], from the lowest bit on; False
        if it is not known at a time of time.perf_counter."""
        ...


class OutputRow(Struct, frozen=True):
    """A row of logits: the position whose successor it predicts, and what is wanted of it."""

    chunk: Chunk
    position: int
    k: int
    pick: int = 0  # a token whose logit is asked for
    mask: TokenMask | None = None  # which tokens are allowed; None: all
    scored: bool = False  # whether the log-sum-exp of its logits is asked for

    @property
    def n_drafted(self) -> int:
        """How many tokens of a draft come before the one that it is about."""
        return max(self.position + 1 - self.chunk.end, 0)


class Filled(Struct, frozen=True):
    """What has been written for a step, for a batch of another process."""

    counts: Counts
    arrays: Mapping[str, Ints]  # by the names of the regions, the rows that count
    tables: Mapping[int, list[int]]  # page tables that have changed, by slot


class Batch:
    """The device buffers of steps of up to ``n_tokens`` tokens and ``n_outputs`` rows."""

    def __init__(
        self,
        device: Device,
        *,
        n_tokens: int,
        n_outputs: int,
        n_sequences: int,
        n_ctx: int,
        n_vocab: int,
        ngrams: NGrams | None = None,
        switch: Switch | None = None,
        n_ring_pages: int = 0,
        media: MediaShape | None = None,
        sections: bool = False,
        block: int = 1,
        n_adapters: int = 0,
        state_width: int = 0,
    ) -> None:
        """``n_ring_pages``: of each slot, for layers that keep their window only; 0: they
        keep all. ``sections``: positions have four numbers (M-RoPE). ``block``: tokens of a block
        whose first token's position is wanted too, if they are more than 1."""
        self._device, self._ngrams, self._n_ring_pages = device, ngrams, n_ring_pages
        self._switch = switch
        self._block = block
        self._media = np.zeros((n_tokens, media.width) if media else (0, 0), np.float32)
        shapes = [
            Region("counts", (N_COUNTS,)), Region("tokens", (n_tokens,)),
            Region("positions", (n_tokens,)), Region("slot_mapping", (n_tokens,)),
            Region("rows", (n_outputs,)), Region("wanted", (n_outputs, 4)),
            Region("row_counts", (N_COUNTS,)), Region("row_tokens", (n_outputs,)),
            Region("tiles", (n_tokens, 4)), Region("sequences", (n_tokens, 4)),
            Region("ring_slot_mapping", (n_tokens,)),
        ]  # fmt: skip
        if sections:
            shapes.append(Region("rope_positions", (n_tokens, 4)))
        if block > 1:
            shapes.append(Region("block_positions", (n_tokens, 4) if sections else (n_tokens,)))
        if n_adapters:
            shapes.append(Region("adapter_scales", (n_tokens, n_adapters)))
            shapes.append(Region("row_scales", (n_outputs, n_adapters)))
        if ngrams is not None:
            shapes.append(Region("ngrams", (n_tokens, ngrams.n_heads)))
        self._memory, self._host, self._arrays, tensors = regions(device, shapes)
        self._pages: Ints = np.zeros((n_sequences, -(-n_ctx // PAGE)), np.int32)
        self._written: list[list[int]] = [[] for _ in range(n_sequences)]
        self._changed: dict[int, list[int]] = {}  # of these, by the last step
        self._tables = empty(device, self._pages.shape, np.int32)
        write(device, self._tables, self._pages, wait=True)
        attention = AttentionInputs(
            tensors["tiles"], tensors["positions"], self._tables, tensors["counts"]
        )
        rings = upload(device, _ring_tables(self._pages, n_ring_pages or 1))
        found = topk_buffers(device, n_outputs, n_vocab, n_outputs)
        self._masks: Ints = np.zeros(found.masks.shape, np.int32)
        self._n_mask_words = -(-n_vocab // 32)
        self.inputs = StepInputs(
            tokens=tensors["tokens"],
            slot_mapping=tensors["slot_mapping"],
            rows=tensors["rows"],
            row_tokens=tensors["row_tokens"],
            row_counts=tensors["row_counts"],
            sequences=tensors["sequences"],
            media=empty(device, self._media.shape) if media else None,
            together=bool(media and media.together),
            attention=attention,
            ring_slot_mapping=tensors["ring_slot_mapping" if n_ring_pages else "slot_mapping"],
            ring=replace(attention, tables=rings) if n_ring_pages else attention,
            topk=replace(found, wanted=tensors["wanted"]),
            rope_positions=tensors.get("rope_positions"),
            adapter_scales=tensors.get("adapter_scales"),
            row_scales=tensors.get("row_scales"),
            ngrams=tensors.get("ngrams"),
            states=empty(device, (n_tokens, state_width)) if state_width else None,
            block_positions=tensors.get("block_positions"),
        )

    @property
    def found(self) -> Tensor:
        return self.inputs.topk.found

    def fill(
        self,
        chunks: Sequence[Chunk],
        rows: Sequence[OutputRow],
        tile: int,
        states: Floats | None = None,
    ) -> Counts:
        """Write a step's inputs to the device; returns its counts (kernels/opencl/tape.py).

        ``rows`` are in the order of the chunks and their positions. ``states``: see
        StepInputs.states, of the step's tokens.
        """
        self._write_tables([chunk.seq for chunk in chunks])
        firsts: dict[int, int] = {}
        sequences: list[tuple[int, int, int, int]] = []
        n, n_tiles, kv_end, n_media = 0, 0, 1, 0
        for chunk in chunks:
            firsts[id(chunk)] = n
            sequences.append((n, chunk.count, chunk.seq.slot, chunk.start))
            self._fill_chunk(chunk, n)
            if chunk.seq.has_media:
                n_media = self._fill_media(chunk, n, n_media)
            n_tiles = self._fill_tiles(chunk, n, n_tiles, tile)
            n += chunk.count
            kv_end = max(kv_end, chunk.start + chunk.count)
        if sequences:  # none where a step is only prepared
            self._arrays["sequences"][: len(chunks)] = sequences
        places = self._fill_rows(rows, firsts)
        counts = (n, len(rows), n_tiles, -(-kv_end // PART), len(chunks), self._is_adapted(n))
        self._arrays["counts"][:] = counts
        self._fill_of_rows(places, counts)
        if not works_in_place(self._device):  # else the step before has been read, all is idle
            write(self._device, self._memory, self._host)
        if n_media and self.inputs.media is not None:
            write(self._device, self.inputs.media, self._media[:n_media])
        if states is not None and self.inputs.states is not None:
            write(self._device, self.inputs.states, np.ascontiguousarray(states), wait=True)
        return counts

    def filled(self, counts: Counts) -> Filled:
        """What ``fill`` has written last, whose counts these are, but for media and states."""
        n = max(N_COUNTS, *counts)
        arrays = {name: array[:n].copy() for name, array in self._arrays.items()}
        return Filled(counts, arrays, self._changed)

    def take(self, filled: Filled) -> Counts:
        """Write to the device, which is idle, what another process has filled in; returns its
        counts."""
        for slot, table in filled.tables.items():
            self._pages[slot, : len(table)] = table
        if filled.tables:
            write(self._device, self._tables, self._pages)
        self.put_back(filled)
        return filled.counts

    def forget_tables(self) -> None:
        """Another process, which takes what is filled in here, has no page tables."""
        self._written = [[] for _ in self._written]

    def put_back(self, filled: Filled) -> None:
        """Write to the device, which is idle, what was filled in for a step; page tables are those
        of the latest."""
        for name, rows in filled.arrays.items():
            self._arrays[name][: len(rows)] = rows
        if not works_in_place(self._device):
            write(self._device, self._memory, self._host)

    def finish(self) -> None:
        """Wait for the device."""
        self._device.finish()

    def _fill_rows(self, rows: Sequence[OutputRow], firsts: Mapping[int, int]) -> list[int]:
        """The rows of logits; returns which tokens of the step they are. ``firsts``: the place of
        each chunk's first token, by its id()."""
        if not rows:
            return []
        n_masks, wanted = 0, list[tuple[int, int, int, int]]()
        for row in rows:
            wanted.append((row.k, row.pick, n_masks if row.mask else -1, int(row.scored)))
            n_masks += row.mask is not None
        self._arrays["wanted"][: len(rows)] = wanted
        places = [firsts[id(row.chunk)] + row.position - row.chunk.start for row in rows]
        self._arrays["rows"][: len(rows)] = places
        if self.inputs.row_scales is not None:
            self._arrays["row_scales"][: len(rows)] = self._arrays["adapter_scales"][places]
        return places

    def _fill_of_rows(self, places: Sequence[int], counts: Counts) -> None:
        """StepInputs.of_rows, beside the scales: these tokens as if there were no others."""
        self._arrays["row_counts"][:] = len(places), *counts[1:]
        if places:
            self._arrays["row_tokens"][: len(places)] = self._arrays["tokens"][places]

    def write_masks(
        self, rows: Sequence[OutputRow], patience: float | None = None
    ) -> list[Ints | None]:
        """Have the rows' masks written, to the device too; each row's, None where it has none or
        where it is not known after ``patience`` seconds: then the device is given all tokens.

        Called while the device computes the step: the host is idle then.
        """
        masks: list[Ints | None] = [None] * len(rows)
        masked = [(i, row.mask) for i, row in enumerate(rows) if row.mask is not None]
        if not masked:
            return masks
        self._device.queue.flush()
        until = None if patience is None else time.perf_counter() + patience
        for n, (i, mask) in enumerate(masked):
            words = self._masks[n, : self._n_mask_words]
            if mask.fill(words, until):
                masks[i] = words
            else:
                words[:] = -1
        write(self._device, self.inputs.topk.masks, self._masks[: len(masked)])
        return masks

    def _fill_chunk(self, chunk: Chunk, n: int) -> None:
        seq, start, end = chunk.seq, chunk.start, chunk.start + chunk.count
        if self._ngrams is not None:
            rows = self._ngrams.rows(
                chunk.tokens(0) if chunk.draft else seq.tokens, start, chunk.count
            )
            self._arrays["ngrams"][n : n + chunk.count] = rows
        if self._n_ring_pages:
            n_ring = self._n_ring_pages * PAGE
            ring = np.arange(start, end, dtype=np.int32) % n_ring + seq.slot * n_ring
            self._arrays["ring_slot_mapping"][n : n + chunk.count] = ring
        if self.inputs.adapter_scales is not None:
            self._fill_scales(chunk, self._arrays["adapter_scales"][n : n + chunk.count])
        if self.inputs.rope_positions is not None or self._block > 1:
            self._fill_rope_positions(chunk, n)
        if chunk.count == 1:
            page = seq.table[start // PAGE]
            self._arrays["tokens"][n] = self._embedded(max(seq.tokens[start], -1))
            self._arrays["positions"][n] = start
            self._arrays["slot_mapping"][n] = page * PAGE + start % PAGE
            return
        positions = np.arange(start, end, dtype=np.int32)
        pages = np.array(seq.table[start // PAGE : (end - 1) // PAGE + 1], np.int32)
        ids = np.maximum(chunk.tokens(start), -1)
        self._arrays["tokens"][n : n + chunk.count] = self._embedded(ids)
        self._arrays["positions"][n : n + chunk.count] = positions
        self._arrays["slot_mapping"][n : n + chunk.count] = (
            pages[positions // PAGE - start // PAGE] * PAGE + positions % PAGE
        )

    def _embedded(self, ids: int | Ints) -> int | Ints:
        """The tokens whose embeddings these have."""
        if self._switch is None:
            return ids
        return np.where(ids < 0, ids, self._switch.embedded[ids])

    def _fill_scales(self, chunk: Chunk, into: Ints) -> None:
        """Those of a chunk's tokens, of the model's own adapters and of those that are loaded."""
        seq, start, end, n_own = chunk.seq, chunk.start, chunk.start + chunk.count, 0
        if self._switch is not None:
            n_own = self._switch.n_adapters
            own = self._switch.scales(chunk.tokens(0), start, chunk.count)
            into[:, :n_own] = own.view(np.int32)
        scales = np.array(seq.adapter_scales or 0, np.float32)
        if seq.adapter_starts:
            places = np.arange(start, end)[:, None]
            scales = np.where(places >= seq.adapter_starts, scales, np.float32(0))
        into[:, n_own:] = scales.view(np.int32)

    def _is_adapted(self, n: int) -> int:
        """1 if one of the step's n tokens has an adapter."""
        return int("adapter_scales" in self._arrays and self._arrays["adapter_scales"][:n].any())

    def _fill_rope_positions(self, chunk: Chunk, n: int) -> None:
        """Those of a chunk's tokens, and of the first tokens of their blocks."""
        first = chunk.start // self._block * self._block
        end, rows = chunk.start + chunk.count, slice(n, n + chunk.count)
        places = np.arange(first, end, dtype=np.int32)
        if self.inputs.rope_positions is not None:
            places = grid_positions(grids_of(chunk.seq.request), first, end - first)
            self._arrays["rope_positions"][rows] = places[chunk.start - first :]
        if self._block > 1:
            at = np.arange(chunk.start, end) // self._block * self._block
            self._arrays["block_positions"][rows] = places[at - first]

    def _fill_media(self, chunk: Chunk, n: int, at: int) -> int:
        """Embeddings from row ``at`` on in place of a chunk's negative tokens; returns the
        number of rows so far."""
        end = chunk.start + chunk.count
        for span, embeddings in chunk.seq.media_between(chunk.start, end):
            first, last = max(span.start, chunk.start), min(span.end, end)
            rows = range(at, at + last - first)
            self._media[rows.start : rows.stop] = embeddings[first - span.start : last - span.start]
            place = n + first - chunk.start
            self._arrays["tokens"][place : place + len(rows)] = -1 - np.array(rows, np.int32)
            at = rows.stop
        return at

    def _fill_tiles(self, chunk: Chunk, n: int, at: int, tile: int) -> int:
        """Tiles of at most ``tile`` queries; returns the number of tiles so far.

        Tokens that see each other are in tiles of their own, which say where they end.
        """
        end = chunk.start + chunk.count
        if not self.inputs.together:
            seen = chunk.seq.n_encoder or end
            return self._fill_run(chunk, n, at, tile, range(chunk.start, end), seen)
        start = chunk.start
        for span, _ in chunk.seq.media_between(start, end):
            if not span.together:
                continue
            at = self._fill_run(chunk, n, at, tile, range(start, span.start), 0)
            at = self._fill_run(chunk, n, at, tile, range(span.start, span.end), span.end)
            start = span.end
        return self._fill_run(chunk, n, at, tile, range(start, end), 0)

    def _fill_run(self, chunk: Chunk, n: int, at: int, tile: int, places: range, seen: int) -> int:
        """Tiles of consecutive tokens; ``seen``: how many keys they see in any case."""
        first = n + places.start - chunk.start
        if len(places) == 1:
            self._arrays["tiles"][at] = first, 1, chunk.seq.slot, seen
            return at + 1
        n_tiles = -(-len(places) // tile)
        firsts = np.arange(n_tiles, dtype=np.int32) * tile
        rows = self._arrays["tiles"][at : at + n_tiles]
        rows[:, 0] = firsts + first
        rows[:, 1] = np.minimum(tile, len(places) - firsts)
        rows[:, 2] = chunk.seq.slot
        rows[:, 3] = seen
        return at + n_tiles

    def _write_tables(self, sequences: Sequence[RunningSequence]) -> None:
        """Bring the page tables of these sequences up to date on the device."""
        self._changed = {}
        for seq in sequences:
            if self._written[seq.slot] != seq.table:
                self._written[seq.slot] = self._changed[seq.slot] = seq.table.copy()
                self._pages[seq.slot, : len(seq.table)] = seq.table
        if self._changed:
            write(self._device, self._tables, self._pages)


def _ring_tables(tables: Ints, n_ring_pages: int) -> Ints:
    """Page tables of the same shape for slots that have a ring of pages each."""
    n_sequences, n_pages = tables.shape
    slots = np.arange(n_sequences, dtype=np.int32)[:, None] * n_ring_pages
    return slots + np.arange(n_pages, dtype=np.int32) % n_ring_pages
