"""From a file and options to what will be loaded where, before any of its memory is allocated.

What its programs are is known then, too, so that compiling begins first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters, with_rope
from gguf_serve.engine.architecture.table import find_architecture
from gguf_serve.engine.errors import EngineError, naming
from gguf_serve.engine.gguf.file import GGUFFile, open_gguf
from gguf_serve.engine.gguf.tensor_values import check_tensor_values
from gguf_serve.engine.loading.assembly import Sizes
from gguf_serve.engine.loading.compiling import Compiling
from gguf_serve.engine.loading.control import read_directions
from gguf_serve.engine.loading.fit import Beside, Fitting, Machine, outline, packed_types
from gguf_serve.engine.loading.machine import find_machine
from gguf_serve.engine.loading.media_loader import Media, load_media, open_media
from gguf_serve.engine.loading.reasons import reasons
from gguf_serve.engine.loading.rehearsal import Rehearsal
from gguf_serve.engine.model.placement import Placement
from gguf_serve.engine.model.weights import Additions
from gguf_serve.engine.model.wire import Wire
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.recording.adapters import read_adapters, room_for_adapters
from gguf_serve.kernels.attention.kv import KV_TYPES, LayerKV
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.kernels.opencl.program import Programs

if TYPE_CHECKING:
    from gguf_serve.engine.encoders.encoder import ProjectorFile

log = logging.getLogger(__name__)
IMAGE_WEIGHTS = "blk.0.vis_attn_qkv.weight"  # CogVLM has a second matrix for images


class Preparation(Struct, frozen=True):
    """``room``: see Fitting.room_for_checkpoints(). ``compiling``: None where the drivers of all
    devices compile when a kernel is launched. ``lent``, ``wires``: see assemble()."""

    gguf: GGUFFile
    hparams: Hyperparameters
    media: Media | None
    additions: Additions
    placed: Sequence[tuple[Device, Programs]]
    placement: Placement
    n_ctx: int
    sizes: Sizes
    room: int | None
    compiling: Compiling | None
    lent: Sequence[LayerKV] = ()
    wires: Sequence[Wire | None] = ()
    projector: ProjectorFile | None = None  # that ``media`` are of

    @property
    def devices(self) -> list[Device]:
        return [device for device, _ in self.placed]


def read_model(path: Path, options: EngineOptions) -> tuple[GGUFFile, Hyperparameters]:
    """The file's header, checked. Raises ModelError."""
    gguf = open_gguf(path)
    with naming(path):
        gguf.override(dict(options.override_kv))
        if options.check_tensors:
            check_tensor_values(gguf)
        hparams = read_hyperparameters(gguf, find_architecture(gguf.architecture))
    return gguf, with_rope(hparams, options.rope)


def prepare(
    gguf: GGUFFile,
    hparams: Hyperparameters,
    options: EngineOptions,
    *,
    machine: Machine | None = None,
    beside: Beside | None = None,
    draft: GGUFFile | None = None,
) -> Preparation:
    """Choose devices and sizes. ``machine``: that of the options, if it is known; ``beside``:
    another model that is to fit as well; ``draft``: the file of one that reads states of this.
    Raises ModelError, EngineError or DeviceError."""
    _check_cache_types(options)
    projector = open_media(options, hparams)
    if projector is not None and IMAGE_WEIGHTS in gguf.tensors:
        hparams = replace(hparams, image_experts=True)
    if projector is not None and projector.speech:  # of a step's last state a frame is made
        hparams = replace(hparams, gives_states=True)
    machine = machine or find_machine(options, gguf.n_parameters)
    first = machine.open(0)
    media = None if projector is None else load_media(projector, options, hparams, first)
    shape = None if media is None else media.shape
    machine = machine.without(first.info, first.usage.n_bytes)
    if media is not None and media.device is not first:
        machine = machine.without(media.device.info, media.device.usage.n_bytes)
    additions = additions_of(gguf, hparams, options, draft)
    model = outline(gguf, hparams, first, additions)
    fitting = Fitting(model, options, machine, shape, beside)
    chosen = fitting.choose()
    devices = [machine.open(at) for at in chosen.devices]
    known = list_devices(options.n_threads)
    said = reasons(options, known, devices, chosen.n_ctx, hparams.n_ctx_train, chosen.sizes)
    log.info("using %s", said)
    placed = [(device, Programs(device)) for device in devices]
    compiling = None
    if chosen.rehearsal:
        compiling = compiling_of(chosen.rehearsal, placed, packed_types(model, chosen.placement))
    return Preparation(
        gguf, hparams, media, additions, placed, chosen.placement, chosen.n_ctx, chosen.sizes,
        fitting.room_for_checkpoints(chosen), compiling, projector=projector,
    )  # fmt: skip


def additions_of(
    gguf: GGUFFile, hparams: Hyperparameters, options: EngineOptions, draft: GGUFFile | None = None
) -> Additions:
    """What the options add to a file. Raises ModelError or EngineError."""
    return Additions(
        [
            *read_adapters([path for path, _ in options.adapters], gguf),
            *room_for_adapters(gguf, options.adapter_room),
        ],
        read_directions(options.control, hparams.n_layers, hparams.n_embd),
        draft,
    )


def compiling_of(
    rehearsal: Rehearsal, placed: Sequence[tuple[Device, Programs]], packed: Sequence[set[str]]
) -> Compiling | None:
    """What compiles the programs of a model's devices; those of other processes, which are meta
    devices, are compiled for the one that is here. None: all drivers do it when they launch."""
    own = next(programs for device, programs in placed if not device.is_meta)
    used = [own if device.is_meta else programs for device, programs in placed]
    if all(programs.are_kept_by_driver for programs in used):
        return None
    return Compiling(rehearsal, used, packed)


def _check_cache_types(options: EngineOptions) -> None:
    for name in (options.cache_type_k, options.cache_type_v):
        if name not in KV_TYPES:
            raise EngineError(f"KV cache type {name!r} is not supported: {', '.join(KV_TYPES)}")
