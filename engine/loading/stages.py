"""Loading a model whose layers are shared out to several processes (``--pipeline``).

The first stage asks the others what they have, chooses sizes and placement for all of them, and
each reads its layers' weights of its own copy of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import EngineError, ModelError
from gguf_serve.engine.forward.stages import MOST_AHEAD, Leading
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.loading.assembly import CacheTypes, Sizes
from gguf_serve.engine.loading.fit import Machine, outline, packed_types, rehearse
from gguf_serve.engine.loading.preparation import Preparation, additions_of, compiling_of
from gguf_serve.engine.model.placement import Placement
from gguf_serve.engine.model.wire import Wire
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.speculation_options import MODEL_TYPES
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import DeviceInfo
from gguf_serve.kernels.opencl.program import Programs

WAIT_STEP = 0.2  # seconds between two reports while others load
DEFAULTS = EngineOptions()
# Options that name devices of one machine, or read or write what stages have
OPTIONS = {
    "--mmproj": "mmproj", "--cache-disk": "cache_disk", "--check-tensors": "check_tensors",
    "--profile": "profile", "--gpu-layers": "n_gpu_layers", "--tensor-split": "tensor_split",
    "--override-tensor": "override_tensor", "--cpu-moe": "cpu_moe", "--n-cpu-moe": "n_cpu_moe",
    "--n-cpu-ffn": "n_cpu_ffn", "--no-kv-offload": "kv_offload", "--lora-runtime": "adapter_room",
}  # fmt: skip


class Serve(Struct, frozen=True):
    """To a stage: be that of this number, for this model."""

    number: int
    n_stages: int
    path: Path
    options: EngineOptions


class Offer(Struct, frozen=True):
    """From a stage: its device. Those of the same ``kernels`` record the same plans, and compute
    the same bits."""

    info: DeviceInfo
    kernels: str
    free: int  # bytes


class Share(Struct, frozen=True):
    """To a stage: what is loaded where; ``fingerprint``: of the first stage's file."""

    fingerprint: str
    placement: Placement
    n_ctx: int
    sizes: Sizes


class Loaded(Struct, frozen=True):
    """From a stage."""


class Stages:
    """The other stages, while the first one loads."""

    def __init__(self, wires: Sequence[Wire], path: Path, options: EngineOptions) -> None:
        """Raises EngineError for options that do not go with stages, or if one fails."""
        refuse(options)
        self._path, self._options = path, options
        self._share: Share | None = None
        self.wires, self._offers = self._asked(wires)

    def _asked(self, wires: Sequence[Wire]) -> tuple[list[Leading], list[Offer]]:
        """Wires to other stages, and what these have."""
        n = len(wires) + 1
        asked = [
            Leading(wire, f"stage {i} of {n}", max(n, MOST_AHEAD))
            for i, wire in enumerate(wires, 1)
        ]
        for i, wire in enumerate(asked, 1):
            wire.send(Serve(i, n, self._path, self._options))
        return asked, [wire.receive() for wire in asked]

    def replaced(self, connect: Callable[[], Iterable[Wire]]) -> list[Leading]:
        """Wires to other processes, which ``connect`` starts, when they have loaded what the stages
        have. Raises EngineError if one fails, or would compute other bits."""
        wires = list(connect())
        try:
            found, offers = self._asked(wires)
            for i, (offer, before) in enumerate(zip(offers, self._offers, strict=True), 1):
                if offer.kernels != before.kernels:
                    raise EngineError(f"stage {i} has {offer.kernels} now, not {before.kernels}")
            for wire in found:
                wire.send(self._share)
            for wire in found:
                wire.receive()
        except BaseException:
            for each in wires:
                each.close()
            raise
        return found

    def machine(self, own: Machine) -> Machine:
        """The first device of this machine, and those of the others, which are meta devices here.

        Raises EngineError for devices that would compute other bits.
        """
        device = own.open(0)
        infos, free = [device.info], [own.free(device.info)]
        for i, offer in enumerate(self._offers, 1):
            if offer.kernels != kernels_of(device):
                raise EngineError(
                    f"--pipeline: all stages need the same kind of device: stage {i} has "
                    f"{offer.kernels}, this machine {kernels_of(device)}"
                )
            name = f"stage {i}'s {offer.info.name}"
            infos.append(replace(offer.info, name=name, index=-i))
            free.append(offer.free)
        devices = [device, *(replace(device.meta(), info=info) for info in infos[1:])]
        return Machine(
            infos, len(infos), None, (), lambda at: devices[at],
            lambda info: free[infos.index(info)], is_pipeline=True,
        )  # fmt: skip

    def share(self, prepared: Preparation) -> Preparation:
        """Have the others load; the same with the wires to them."""
        share = Share(
            prepared.gguf.fingerprint(), prepared.placement, prepared.n_ctx, prepared.sizes
        )
        self._share = share
        for wire in self.wires:
            wire.send(share)
        return replace(prepared, wires=[None, *self.wires])

    def wait(self, progress: Callable[[float], None]) -> None:
        """Until all have loaded; what ``progress`` raises ends that."""
        for wire in self.wires:
            while wire.receive(WAIT_STEP) is None:
                progress(1.0)


def prepare_share(
    gguf: GGUFFile, hparams: Hyperparameters, wanted: Serve, device: Device, share: Share
) -> Preparation:
    """What a stage loads. Raises ModelError for a file that is not the first stage's."""
    if gguf.fingerprint() != share.fingerprint:
        raise ModelError("this is not the same file as that of the first stage")
    options = wanted.options
    devices = [device if at == wanted.number else device.meta() for at in range(wanted.n_stages)]
    placed = [(each, Programs(each)) for each in devices]
    additions = additions_of(gguf, hparams, options)
    model = outline(gguf, hparams, device, additions)
    rehearsal = rehearse(
        model, share.placement, devices, share.sizes,
        CacheTypes(options.cache_type_k, options.cache_type_v), flash=options.flash_attn != "off",
    )  # fmt: skip
    return Preparation(
        gguf, hparams, None, additions, placed, share.placement, share.n_ctx, share.sizes, None,
        compiling_of(rehearsal, placed, packed_types(model, share.placement)),
    )  # fmt: skip


def refuse(options: EngineOptions) -> None:
    """EngineError for options that do not go with stages."""
    given = [
        name
        for name, field in OPTIONS.items()
        if getattr(options, field) != getattr(DEFAULTS, field)
    ]
    if options.speculation.draft.model is not None:
        given.append("--model-draft")
    given += [f"--spec-type {name}" for name in options.speculation.types if name in MODEL_TYPES]
    if given:
        raise EngineError(f"--pipeline does not go with {', '.join(given)}")


def kernels_of(device: Device) -> str:
    """What must be alike where the same bits are to be computed."""
    name = "" if device.info.kind == "cpu" else f" of {device.info.name}"
    bytes = f"{device.byte_codes} of 8 bits"
    return f"kernels{name}: {' '.join((device.family, bytes, *device.defines))}"
