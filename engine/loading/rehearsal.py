"""Which programs a model's steps need, found out on meta devices before anything is loaded."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.forward.batch import MediaShape
from gguf_serve.engine.loading.assembly import CacheTypes, Sizes, allocate_memory
from gguf_serve.engine.model.weights import ModelWeights
from gguf_serve.engine.recording.step import Mode
from gguf_serve.kernels.attention.kv import LayerKV
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs, Spec


class Rehearsal:
    """A model's recordings on meta devices. Thread-safe."""

    def __init__(
        self,
        h: Hyperparameters,
        weights: ModelWeights,
        devices: Sequence[tuple[Device, Programs]],
        sizes: Sizes,
        cache: CacheTypes,
        *,
        flash: bool,
        media: MediaShape | None,
        lent: Sequence[LayerKV] = (),
    ) -> None:
        """``lent``: see assemble()."""
        self.memory = allocate_memory(
            h, weights, devices, sizes, cache, flash=flash, media=media, lent=lent
        )
        self.devices = [device for device, _ in devices]
        self._decoder, self._programs = self.memory.decoder, [programs for _, programs in devices]
        self._lock = threading.Lock()
        self._decoder.record_topk()
        self.of_all_steps = self._take()  # programs that every mode needs, by device
        self._found: dict[Mode, list[list[Spec]]] = {}

    @property
    def generates(self) -> bool:
        """Whether the model yields logits."""
        return self._decoder.generates

    @property
    def is_simd(self) -> bool:
        """Whether all devices have the kernels whose results do not depend on the mode."""
        return self._decoder.is_simd

    @property
    def encodes(self) -> bool:
        """Whether prompts go through an encoder, for a decoder."""
        return self._decoder.encodes

    @property
    def gives_states(self) -> bool:
        """Whether steps give hidden states of all tokens."""
        return self._decoder.gives_states

    def programs(self, mode: Mode) -> list[list[Spec]]:
        """What a step of a mode launches, by device."""
        with self._lock:
            if mode not in self._found:
                self._decoder.record(mode)
                self._found[mode] = self._take()
            return self._found[mode]

    def of_modes(self, modes: Iterable[Mode]) -> list[list[Spec]]:
        """What steps of these modes launch, by device, each program once."""
        found: list[dict[Spec, None]] = [dict.fromkeys(specs) for specs in self.of_all_steps]
        for mode in modes:
            for known, specs in zip(found, self.programs(mode), strict=True):
                known |= dict.fromkeys(specs)
        return [list(specs) for specs in found]

    def _take(self) -> list[list[Spec]]:
        return [programs.take_wanted() for programs in self._programs]
