"""From a model's weights to a runner: the memory of steps and of the KV cache, by device."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.forward.batch import Batch, MediaShape
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.layers.attention.compressed import compressed_shapes
from gguf_serve.engine.layers.attention.indexer import index_shapes, pooled_block
from gguf_serve.engine.model.decoder import Decoder, kv_shapes
from gguf_serve.engine.model.place import Place
from gguf_serve.engine.model.weights import ModelWeights
from gguf_serve.engine.model.wire import Wire
from gguf_serve.engine.options import DEFAULT_SLOTS, EngineOptions
from gguf_serve.kernels.attention.kv import PAGE, KVPages, KVShape, LayerKV
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.recurrent.state import SlotStates

LOGITS_BYTES = 64 << 20  # room for rows of logits, unless the slots need more


class Sizes(Struct, frozen=True):
    """Tokens, slots and pages that follow from the options."""

    n_pages: int
    n_slots: int
    n_ctx_slot: int
    n_tokens: int  # of a step
    n_batch: int
    n_outputs: int
    n_ring_pages: int = 0  # of a slot in layers that keep their window only; 0: they keep all


def slots_of(options: EngineOptions) -> int:
    return DEFAULT_SLOTS if options.n_parallel < 1 else options.n_parallel


def sizes_of(
    h: Hyperparameters, options: EngineOptions, n_ctx: int, logits_bytes: int = LOGITS_BYTES
) -> Sizes:
    """For ``n_ctx`` tokens of context, in llama-server's way: with --parallel N each slot has a
    share of them; without it there are four, each of which may use all; --kv-unified says so
    itself, --kv-unified-per-slot what it has at most. ``logits_bytes``: the most that a buffer of
    logits may have; a step has fewer rows of them then."""
    shared = options.n_parallel < 1 if options.kv_unified is None else options.kv_unified
    n_slots = slots_of(options)
    n_ctx_slot = min(n_ctx if shared else n_ctx // n_slots, options.n_ctx_slot or n_ctx)
    if h.n_positions:
        n_ctx_slot = min(n_ctx_slot, h.n_positions)
    n_tokens = min(options.n_ubatch, options.n_batch, n_ctx)
    if n_ctx_slot < 1 or n_tokens < n_slots:
        raise EngineError(
            f"a context of {n_ctx} and batches of {n_tokens} tokens are too small for "
            f"{n_slots} slots"
        )
    n_pages = -(-n_ctx // PAGE) + (0 if shared else n_slots)
    ring = 0 if options.swa_full else ring_pages(h, n_slots, n_tokens, n_pages)
    return Sizes(
        n_pages=n_pages,
        n_slots=n_slots,
        n_ctx_slot=n_ctx_slot,
        n_tokens=n_tokens,
        n_batch=options.n_batch,
        n_outputs=min(n_tokens, max(n_slots, logits_bytes // (4 * h.n_vocab))),
        n_ring_pages=ring,
    )


class CacheTypes(Struct, frozen=True):
    """How K and V are kept: keys of kernels.attention.kv.KV_TYPES."""

    k: str
    v: str


class Memory(Struct, frozen=True):
    """What a model has on its devices beside its weights."""

    decoder: Decoder
    batches: list[Batch]
    pages: list[KVPages]
    states: SlotStates


def assemble(
    h: Hyperparameters,
    weights: ModelWeights,
    devices: Sequence[tuple[Device, Programs]],
    sizes: Sizes,
    cache: CacheTypes,
    *,
    flash: bool,
    media: MediaShape | None = None,
    watched: bool = False,
    lent: Sequence[LayerKV] = (),
    wires: Sequence[Wire | None] = (),
) -> Runner:
    """A runner of the model on its devices, in the order of the weights' indices. ``watched``: it
    notes after which layer values are not finite first. ``lent``: the K and V of another model on
    the same device, see Hyperparameters.kv_layers. ``wires``: to the processes that have the
    devices, which are meta devices here; None, or no wire at all: this one has."""
    memory = allocate_memory(
        h, weights, devices, sizes, cache, flash=flash, media=media, watched=watched,
        lent=lent, wires=wires,
    )  # fmt: skip
    return Runner(
        memory.decoder, memory.batches, memory.pages, memory.states, weights.placement.output
    )


def allocate_memory(
    h: Hyperparameters,
    weights: ModelWeights,
    devices: Sequence[tuple[Device, Programs]],
    sizes: Sizes,
    cache: CacheTypes,
    *,
    flash: bool,
    media: MediaShape | None = None,
    watched: bool = False,
    lent: Sequence[LayerKV] = (),
    wires: Sequence[Wire | None] = (),
) -> Memory:
    """All that a runner needs; on meta devices, to know how much that is."""
    batches, places, states = [], [], SlotStates(sizes.n_slots)
    for at, ((device, programs), wire) in enumerate(
        zip(devices, wires or [None] * len(devices), strict=True)
    ):
        batch = Batch(
            device, n_tokens=sizes.n_tokens, n_outputs=sizes.n_outputs, n_sequences=sizes.n_slots,
            n_ctx=sizes.n_ctx_slot, n_vocab=h.n_vocab, ngrams=h.ngrams,
            switch=h.switch,
            n_ring_pages=sizes.n_ring_pages, media=media,
            sections=bool(h.rope_sections), block=pooled_block(h),
            n_adapters=weights.n_adapters, state_width=weights.state_width if h.takes_states else 0,
        )  # fmt: skip
        pages = _kv_pages(
            h, device, _kv_shapes(h, weights, at, sizes.n_ctx_slot), sizes, cache, states
        )
        batches.append(batch)
        places.append(Place(
            h, weights, pages, batch.inputs, device, programs, states,
            n_tokens=sizes.n_tokens, n_split=sizes.n_slots, n_ctx=sizes.n_ctx_slot, flash=flash,
            lent=lent, wire=wire,
        ))  # fmt: skip
    decoder = Decoder(h, weights, places, n_outputs=sizes.n_outputs, watched=watched)
    return Memory(decoder, batches, [place.pages for place in places], states)


def _kv_pages(
    h: Hyperparameters,
    device: Device,
    shapes: Sequence[KVShape],
    sizes: Sizes,
    cache: CacheTypes,
    states: SlotStates,
) -> KVPages:
    rings = [sizes.n_ring_pages * sizes.n_slots * windowed for windowed in h.windowed]
    rings += [0] * (len(shapes) - len(rings))  # of indexers' keys
    pages = KVPages(device, shapes, sizes.n_pages, cache.k, cache.v, rings)
    for layer, n_ring in zip(pages.layers, rings, strict=True):
        for tensor in (*layer.k.slabs, *layer.v.slabs) if n_ring else ():
            if tensor.n_bytes:
                states.ring(device, tensor, h.window)
    return pages


def most_copies(options: EngineOptions, n_slots: int, copy_bytes: int) -> int:
    """Checkpoints of so many bytes that the options allow."""
    if not copy_bytes:
        return 0
    n = options.ctx_checkpoints * n_slots
    return n if options.cache_ram_mib < 0 else min(n, (options.cache_ram_mib << 20) // copy_bytes)


def ring_pages(h: Hyperparameters, n_slots: int, n_tokens: int, n_pages: int) -> int:
    """Pages of a slot's ring, which holds a window and the tokens of a step; 0: windows do not
    save memory."""
    n = -(-(h.window + n_tokens) // PAGE) + 1
    return n if any(h.windowed) and h.causal and n * n_slots < n_pages else 0


def _kv_shapes(h: Hyperparameters, weights: ModelWeights, at: int, n_ctx: int) -> list[KVShape]:
    """What each layer keeps on a device, nothing where its mixers are on another: K and V of
    all layers, then their indexers' keys, then compressed ones if any layer has them."""
    return [
        shape if weights.placement.parts[layer.part] == at else replace(shape, n_kv=0)
        for shapes in (kv_shapes(h), index_shapes(h, n_ctx), compressed_shapes(h))
        for shape, layer in zip(shapes, weights.layers, strict=bool(shapes))
    ]
