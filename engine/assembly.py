"""From a model's weights to a runner: the memory of steps and of the KV cache, by device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.batch import Batch
from engine.models.arch import Hyperparameters
from engine.models.decoder import Decoder, kv_shapes
from engine.models.place import Place
from engine.runner import Runner
from engine.weights import ModelWeights
from kernels.device import Device
from kernels.kv import KVPages, KVShape
from kernels.program import Programs
from kernels.state import SlotStates


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens, slots and pages that follow from the options."""

    n_pages: int
    n_slots: int
    n_ctx_slot: int
    n_tokens: int  # of a step
    n_batch: int
    n_outputs: int


@dataclass(frozen=True, slots=True)
class CacheTypes:
    """How K and V are kept: keys of kernels.kv.KV_TYPES."""

    k: str
    v: str


def assemble(
    h: Hyperparameters,
    weights: ModelWeights,
    devices: Sequence[tuple[Device, Programs]],
    sizes: Sizes,
    cache: CacheTypes,
    *,
    flash: bool,
) -> Runner:
    """A runner of the model on its devices, in the order of the weights' indices."""
    batches, places, states = [], [], SlotStates(sizes.n_slots)
    for at, (device, programs) in enumerate(devices):
        batch = Batch(
            device, n_tokens=sizes.n_tokens, n_outputs=sizes.n_outputs, n_sequences=sizes.n_slots,
            n_ctx=sizes.n_ctx_slot, n_vocab=h.n_vocab,
        )  # fmt: skip
        pages = KVPages(device, _kv_shapes(h, weights, at), sizes.n_pages, cache.k, cache.v)
        batches.append(batch)
        places.append(Place(
            h, weights, pages, batch.inputs, device, programs, states,
            n_tokens=sizes.n_tokens, n_split=sizes.n_slots, n_ctx=sizes.n_ctx_slot, flash=flash,
        ))  # fmt: skip
    decoder = Decoder(h, weights, places, n_outputs=sizes.n_outputs)
    return Runner(decoder, batches, [place.pages for place in places], states, weights.output_at)


def _kv_shapes(h: Hyperparameters, weights: ModelWeights, at: int) -> list[KVShape]:
    """What each layer keeps on a device: nothing where its mixers are on another."""
    return [
        shape if layer.mixers_at == at else KVShape(0, shape.head, shape.head_v)
        for shape, layer in zip(kv_shapes(h), weights.layers, strict=True)
    ]  # fmt: skip
