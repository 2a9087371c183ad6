"""What a model needs on each device, and a choice of context and placement that fits.

Nothing is reckoned by formulas: the model is loaded onto meta devices, which count what is
allocated, so that what fits here fits when it is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.forward.batch import MediaShape
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.loading.assembly import (
    LOGITS_BYTES,
    CacheTypes,
    Sizes,
    most_copies,
    sizes_of,
    slots_of,
)
from gguf_serve.engine.loading.rehearsal import Rehearsal
from gguf_serve.engine.model.placement import (
    Placement,
    ffns_on,
    in_stages,
    layers_with_experts,
    overridden,
    placement_of,
    spread,
    unmatched,
)
from gguf_serve.engine.model.weights import NO_ADDITIONS, Additions, ModelWeights, allocate_weights
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.recording.tensors import TensorSource
from gguf_serve.kernels.attention.kv import LayerKV
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import DeviceError, DeviceInfo
from gguf_serve.kernels.opencl.program import Programs

log = logging.getLogger(__name__)
CONTEXT_STEP = 256  # tokens, of a context that is shrunk


class Outline(Struct, frozen=True):
    """A model that has been read but not loaded: its weights lie on meta devices, those of every
    part (see Placement.parts) on one of their own."""

    h: Hyperparameters
    names: tuple[str, ...]  # of its tensors
    weights: ModelWeights
    part_bytes: tuple[int, ...]
    part_types: tuple[frozenset[str], ...]  # of the matrices that are packed
    tied_bytes: int  # of the matrix that embedding and output share if they are together


def outline(
    gguf: GGUFFile, h: Hyperparameters, device: Device, additions: Additions = NO_ADDITIONS
) -> Outline:
    """Raises ModelError, as loading would."""
    n_parts = 2 * h.n_layers + 2
    devices = [device.meta() for _ in range(n_parts)]
    weights, jobs = allocate_weights(gguf, h, devices, placement_of(range(n_parts)), additions)
    tied = not TensorSource(gguf, device, h.arch.unused).has("output.weight")
    return Outline(
        h, tuple(gguf.tensors), weights, tuple(d.usage.n_bytes for d in devices),
        tuple(frozenset(job.matrix.type.name for job in some) for some in jobs),
        weights.head.output.matrix.n_bytes if tied and weights.head.output is not None else 0,
    )  # fmt: skip


def packed_types(model: Outline, placement: Placement) -> list[set[str]]:
    """The tensor types that are packed on each of the devices that ``placement`` refers to."""
    found: list[set[str]] = [set() for _ in range(max(placement.parts) + 1)]
    for at, types in zip(placement.parts, model.part_types, strict=True):
        found[at] |= types
    return found


class MemoryNeed(Struct, frozen=True):
    """Bytes that a model takes on a device."""

    weights: int
    kv: int
    scratch: int
    checkpoints: int = 0  # in the host's memory, counted on a processor: one for each slot

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.scratch + self.checkpoints

    def __str__(self) -> str:
        parts = [("weights", self.weights), ("KV cache", self.kv), ("scratch", self.scratch)]
        parts += [("checkpoints", self.checkpoints)] * bool(self.checkpoints)
        return ", ".join(f"{name} {mib(n)}" for name, n in parts)


def mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.0f} MiB"


def rehearse(
    model: Outline,
    placement: Placement,
    devices: Sequence[Device],
    sizes: Sizes,
    cache: CacheTypes,
    *,
    flash: bool,
    media: MediaShape | None = None,
    lent: Sequence[LayerKV] = (),
) -> Rehearsal:
    """The model with all its memory on meta devices like those that ``placement`` refers to.
    ``lent``: see assemble()."""
    metas = [(device, Programs(device)) for device in (device.meta() for device in devices)]
    moved = replace(model.weights, placement=placement)
    return Rehearsal(model.h, moved, metas, sizes, cache, flash=flash, media=media, lent=lent)


def needs(
    model: Outline,
    placement: Placement,
    rehearsal: Rehearsal,
    copies: Callable[[int], int] = lambda copy_bytes: 0,
) -> list[MemoryNeed]:
    """What the model takes on each of the devices that ``placement`` refers to. ``copies``: how
    many checkpoints of so many bytes are to have room."""
    memory, devices = rehearsal.memory, rehearsal.devices
    weights = [0] * len(devices)
    for at, n_bytes in zip(placement.parts, model.part_bytes, strict=True):
        weights[at] += n_bytes
    if placement.output == placement.embedding:
        weights[placement.output] -= model.tied_bytes
    found = [
        MemoryNeed(n_bytes, pages.n_bytes, device.usage.n_bytes - pages.n_bytes)
        for n_bytes, pages, device in zip(weights, memory.pages, devices, strict=True)
    ]
    copy_bytes = memory.states.copy_bytes
    host = next((i for i, device in enumerate(devices) if device.info.kind == "cpu"), None)
    if host is not None:
        found[host] = replace(found[host], checkpoints=copies(copy_bytes) * copy_bytes)
    return found


class Beside(Struct, frozen=True):
    """Bytes that another model takes of a device: its weights, and of each page."""

    info: DeviceInfo
    weights: int
    page: int

    def total(self, sizes: Sizes) -> int:
        return self.weights + self.page * sizes.n_pages


class Machine(Struct, frozen=True):
    """The devices that a model may use: the first ``n_offload`` have layers by default.
    ``is_pipeline``: all have, and each is a machine's own (engine.loading.stages)."""

    infos: Sequence[DeviceInfo]
    n_offload: int
    cpu: int | None  # which of them is the processor; None: there is no driver for it
    overrides: Sequence[tuple[str, int]]  # --override-tensor: a pattern and a device
    open: Callable[[int], Device]
    free: Callable[[DeviceInfo], int]  # bytes that can be had
    is_pipeline: bool = False

    def without(self, info: DeviceInfo, n_bytes: int) -> Machine:
        """The same after something else took so much of a device, of which the drivers of GPUs do
        not tell; what is free on a processor tells it."""
        taken = 0 if info.kind == "cpu" else n_bytes
        return replace(self, free=lambda other: self.free(other) - taken * (other == info))

    def share_memory(self, one: int, other: int) -> bool:
        """Whether two devices have the same memory: all that are the processor do."""
        kinds = {self.infos[at].kind for at in (one, other)}
        return one == other or (kinds == {"cpu"} and not self.is_pipeline)

    def cpu_index(self) -> int:
        if self.cpu is None:
            raise EngineError("layers are to be on the CPU, for which there is no OpenCL driver")
        return self.cpu


class Trial(Struct, frozen=True):
    """A choice of what is loaded where, and what it takes; the machine numbers the devices.

    ``rehearsal`` is the model of it on meta devices, None if one refuses a buffer.
    """

    n_ctx: int
    n_layers: int  # on the devices that are to have them, counting the output layer
    sizes: Sizes
    placement: Placement
    devices: tuple[int, ...]
    needs: tuple[MemoryNeed, ...]
    rehearsal: Rehearsal | None = None
    refusal: str = ""  # of a device that cannot allocate one of the buffers at all

    def total(self) -> MemoryNeed:
        columns = zip(
            *((n.weights, n.kv, n.scratch, n.checkpoints) for n in self.needs), strict=True
        )
        return MemoryNeed(*(sum(column) for column in columns))


class Fitting:
    """Tries choices out for a model, options and a machine."""

    def __init__(
        self,
        model: Outline,
        options: EngineOptions,
        machine: Machine,
        media: MediaShape | None = None,
        beside: Beside | None = None,
    ) -> None:
        """``beside``: another model, with as many pages, that is to fit as well."""
        self._model, self._options, self._machine = model, options, machine
        self._media, self._beside = media, beside
        self._has_experts = layers_with_experts(model.names, model.h.n_layers)
        self._whole = model.h.n_layers + 1
        self._n_offload = machine.n_offload

    def choose(self) -> Trial:
        """What is to be loaded. Raises EngineError, with the numbers, if nothing fits, and
        DeviceError if a device cannot allocate as much at once."""
        h, options = self._model.h, self._options
        given = options.n_ctx
        if given < 0:
            given = options.n_ctx_slot * slots_of(options)
        n_ctx = given or h.n_ctx_train
        auto = options.n_gpu_layers in ("auto", "all")
        n_layers = self._whole if auto else int(options.n_gpu_layers)
        wanted = trial = self._fewest(n_ctx, self._whole if n_layers < 0 else n_layers)
        if options.fit and not self._fits(trial):
            if options.n_ctx < 0 and not given:
                trial = self._shrink_context(trial)
            if not self._fits(trial) and options.n_gpu_layers == "auto":
                trial = self._shrink_layers(trial)
        if trial.refusal:
            raise DeviceError(trial.refusal)
        if options.fit:
            self._check(trial)
        self._report(wanted, trial)
        return trial

    def _fewest(self, n_ctx: int, n_layers: int) -> Trial:
        """On as few of the devices as will do, unless the options name them: a step waits for
        each in turn, and for what is carried from one to the next."""
        options, n = self._options, self._machine.n_offload
        named = options.device is not None or options.tensor_split or not options.fit
        named = named or self._machine.is_pipeline
        for self._n_offload in range(n if named else 1, n + 1):
            trial = self._try(n_ctx, n_layers)
            if self._fits(trial):
                break
        return trial

    def _try(self, n_ctx: int, n_layers: int, n_cpu_moe: int | None = None) -> Trial:
        options, machine, h = self._options, self._machine, self._model.h
        everywhere = self._place(n_layers, n_cpu_moe)
        used = tuple(sorted(set(everywhere.parts)))
        placement = placement_of([used.index(at) for at in everywhere.parts])
        devices = [machine.open(at) for at in used]
        logits_bytes = min(LOGITS_BYTES, devices[placement.output].max_allocation)
        sizes = sizes_of(h, options, n_ctx, logits_bytes)
        trial = Trial(n_ctx, n_layers, sizes, placement, used, ())
        try:
            rehearsal = rehearse(
                self._model, placement, devices, sizes,
                CacheTypes(options.cache_type_k, options.cache_type_v),
                flash=options.flash_attn != "off", media=self._media,
            )  # fmt: skip
        except DeviceError as error:
            return replace(trial, refusal=str(error))
        found = needs(
            self._model, placement, rehearsal,
            lambda size: min(sizes.n_slots, most_copies(options, sizes.n_slots, size)),
        )  # fmt: skip
        return replace(trial, needs=tuple(found), rehearsal=rehearsal)

    def _place(self, n_layers: int, n_cpu_moe: int | None) -> Placement:
        options, machine, h = self._options, self._machine, self._model.h
        if machine.is_pipeline:
            return in_stages(self._model.part_bytes, self._model.tied_bytes, len(machine.infos))
        offload = machine.infos[: self._n_offload]
        n = len(offload)
        shares: Sequence[float] = (*options.tensor_split, *[0.0] * n)[:n]
        if not options.tensor_split:
            shares = [machine.free(info) for info in offload]
        cpu = machine.cpu_index() if n_layers < self._whole else -1
        placement = spread(h.n_layers, n_layers, shares, cpu)
        n = h.n_layers if options.cpu_moe else max(options.n_cpu_moe, n_cpu_moe or 0)
        if n:
            placement = ffns_on(placement, self._has_experts, n, machine.cpu_index())
        if options.n_cpu_ffn:
            dense = [not has for has in self._has_experts]
            placement = ffns_on(placement, dense, options.n_cpu_ffn, machine.cpu_index())
        if not options.kv_offload:
            placement = replace(placement, mixers=(machine.cpu_index(),) * h.n_layers)
        if machine.overrides:
            placement = overridden(placement, self._model.names, machine.overrides)
        return placement

    def _fits(self, trial: Trial) -> bool:
        return not trial.refusal and not self._shortages(trial, self._spare)

    def _spare(self, at: int) -> int:
        """Bytes to leave free on a device of the machine."""
        targets = self._options.fit_target
        return targets[min(at, len(targets) - 1)] << 20

    def _shortages(self, trial: Trial, spare: Callable[[int], int]) -> list[tuple[DeviceInfo, int]]:
        """Devices without room for what they are to have and their ``spare`` bytes, and what is
        free there."""
        short = []
        for at in trial.devices:
            info = self._machine.infos[at]
            taken = self._taken(trial, at) + self._taken_beside(info, trial.sizes)
            free = self._machine.free(info)
            if taken + spare(at) > free:
                short.append((info, free))
        return short

    def _taken(self, trial: Trial, at: int) -> int:
        """Bytes that a trial takes of a device's memory."""
        return sum(
            need.total
            for other, need in zip(trial.devices, trial.needs, strict=True)
            if self._machine.share_memory(at, other)
        )

    def _taken_beside(self, info: DeviceInfo, sizes: Sizes) -> int:
        beside = self._beside
        is_there = beside is not None and (
            beside.info == info or beside.info.kind == info.kind == "cpu"
        )
        return beside.total(sizes) if beside is not None and is_there else 0

    def room_for_checkpoints(self, trial: Trial) -> int | None:
        """Bytes that they may take where the model is on the processor; None: any number."""
        at = next((at for at in trial.devices if self._machine.infos[at].kind == "cpu"), None)
        if at is None or not self._options.fit:
            return None
        counted = trial.total().checkpoints
        taken = self._taken(trial, at) + self._taken_beside(self._machine.infos[at], trial.sizes)
        free = self._machine.free(self._machine.infos[at])
        return max(free - taken - self._spare(at), 0) + counted

    def _shrink_context(self, trial: Trial) -> Trial:
        """The largest context that fits, but not below --fit-ctx."""
        least = min(self._options.fit_ctx, trial.n_ctx)
        return _largest(
            lambda n: self._try(least + n * CONTEXT_STEP, trial.n_layers), self._fits,
            (trial.n_ctx - least) // CONTEXT_STEP,
        )  # fmt: skip

    def _shrink_layers(self, trial: Trial) -> Trial:
        """Experts to the CPU first, then whole layers, as few as will do."""
        machine, h = self._machine, self._model.h
        if machine.cpu is None or machine.infos[0].kind == "cpu":
            return trial
        if any(self._has_experts) and not self._options.cpu_moe:
            dense = _largest(
                lambda n: self._try(trial.n_ctx, trial.n_layers, h.n_layers - n), self._fits,
                h.n_layers,
            )  # fmt: skip
            if self._fits(dense):
                return dense
        return _largest(lambda n: self._try(trial.n_ctx, n), self._fits, self._whole)

    def _check(self, trial: Trial) -> None:
        short = self._shortages(trial, lambda at: 0)
        if not short:
            return
        free = {info.index: n for info, n in short}
        lines = [
            f"{self._machine.infos[at].name}: {need}, together {mib(need.total)}"
            + (f", of {mib(free[i])} free" if (i := self._machine.infos[at].index) in free else "")
            for at, need in zip(trial.devices, trial.needs, strict=True)
        ]
        raise EngineError(
            f"a context of {trial.n_ctx} tokens does not fit into memory ({'; '.join(lines)}"
            f"{self._told_beside(trial.sizes)}); "
            "smaller: --ctx-size, --parallel, --ubatch-size, --cache-type-k and -v, --gpu-layers"
        )

    def _told_beside(self, sizes: Sizes) -> str:
        beside = self._beside
        return "" if beside is None else f"; the model that guesses: {mib(beside.total(sizes))}"

    def _report(self, wanted: Trial, trial: Trial) -> None:
        for pattern in unmatched(self._model.names, self._machine.overrides):
            log.warning("--override-tensor: no tensor's name matches %r", pattern)
        for at, need in zip(trial.devices, trial.needs, strict=True):
            info = self._machine.infos[at]
            log.info("%s: %s, of %s free", info.name, need, mib(self._machine.free(info)))
        if trial.n_ctx < wanted.n_ctx:
            log.warning(
                "a context of %d tokens instead of %d fits into memory; --ctx-size sets it",
                trial.n_ctx, wanted.n_ctx,
            )  # fmt: skip
        if trial.placement != wanted.placement:
            log.warning(
                "not all layers fit into the memory of %s: the CPU has some",
                self._machine.infos[0].name,
            )


def _largest(attempt: Callable[[int], Trial], fits: Callable[[Trial], bool], most: int) -> Trial:
    """The attempt with the largest number from 0 to ``most`` that fits, or that with 0."""
    low, best = 0, attempt(0)
    if not fits(best):
        return best
    while low < most:
        middle = (low + most + 1) // 2
        trial = attempt(middle)
        if fits(trial):
            low, best = middle, trial
        else:
            most = middle - 1
    return best
