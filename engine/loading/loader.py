"""From a GGUF file and options to everything that the engine's thread needs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import replace

import gguf_serve.kernels.opencl.platforms as devices
from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.chat.prompt import Template
from gguf_serve.engine.errors import EngineError, refusing
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.loading.assembly import CacheTypes, Sizes, assemble, most_copies
from gguf_serve.engine.loading.compiling import Compiling
from gguf_serve.engine.loading.draft_loader import DraftFile, open_draft
from gguf_serve.engine.loading.head_loader import Heads, open_heads
from gguf_serve.engine.loading.heap import sparse_heap
from gguf_serve.engine.loading.machine import find_machine
from gguf_serve.engine.loading.media_loader import Media, speech_of
from gguf_serve.engine.loading.model_info import model_info, settings_of
from gguf_serve.engine.loading.packing import PackRun
from gguf_serve.engine.loading.preparation import Preparation, prepare, read_model
from gguf_serve.engine.loading.stages import Loaded, Offer, Serve, Stages, kernels_of, prepare_share
from gguf_serve.engine.loading.texts import read_text
from gguf_serve.engine.model.weights import ModelWeights, allocate_weights
from gguf_serve.engine.model.wire import Wire
from gguf_serve.engine.options import EngineOptions, ModelInfo
from gguf_serve.engine.recording.adapters import Adapted
from gguf_serve.engine.recording.low_rank import OnDevice, Reserved
from gguf_serve.engine.scheduling.checkpoints import Checkpoints
from gguf_serve.engine.scheduling.page_cache import PageCache
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.speculation.model_drafter import ModelDrafter
from gguf_serve.engine.speculation_options import OFF
from gguf_serve.engine.speech.speaker import Speech
from gguf_serve.engine.text.tokenizer import Tokenizer
from gguf_serve.kernels.attention.kv import PAGE
from gguf_serve.kernels.opencl.drivers import load_ahead
from gguf_serve.kernels.opencl.platforms import DeviceError, DeviceInfo
from gguf_serve.kernels.opencl.program import BuildError
from gguf_serve.kernels.quantization.weights import PackJob

log = logging.getLogger(__name__)
T = TypeVar("T")
PROGRESS_SECONDS = 0.1  # between two reports of how far loading is


class Model(Struct, frozen=True):
    """A model that is ready to serve."""

    runner: Runner
    scheduler: Scheduler
    tokenizer: Tokenizer
    chat_template: Template
    info: ModelInfo
    media: Media | None = None
    speech: Speech | None = None  # how texts are spoken, if it speaks
    drafter: ModelDrafter | None = None  # a model that guesses its tokens
    reserved: Reserved | None = None  # for adapters that are loaded while it is served
    stages: Stages | None = None  # the processes that have a share of its layers


def list_devices() -> list[DeviceInfo]:
    """The OpenCL devices of this machine."""
    return devices.list_devices()


def free_memory(device: DeviceInfo) -> int:
    """Bytes that can be allocated on a device."""
    return devices.free_memory(device)


def load_model(
    path: Path,
    options: EngineOptions,
    progress: Callable[[float], None],
    wires: Sequence[Wire] = (),
) -> Model:
    """Load a model. ``wires``: to processes that are to have their share of the layers. Raises
    ModelError for its file, EngineError for device or options, or if another process fails."""
    with refusing(path), sparse_heap():
        try:
            return _with_what_builds(lambda: _load(path, options, progress, wires), bool(wires))
        except DeviceError as error:
            raise EngineError(str(error)) from error


def _with_what_builds(load: Callable[[], T], in_parts: bool = False) -> T:
    """Load anew without the instructions of a GPU whose programs do not build; with what other
    processes have ``in_parts``, that is for the next start."""
    while True:
        try:
            return load()
        except BuildError as error:
            forms = error.reject()
            if not forms or in_parts:
                raise
            log.warning("kernels that do without %s are used: %.500s", ", ".join(forms), error)


def compile_model(
    path: Path, options: EngineOptions, progress: Callable[[float], None]
) -> tuple[int, int]:
    """Compile every program of a model with these options, for later starts; it is not loaded.
    How many were missing, and how many there are. Raises as load_model does."""
    with refusing(path):
        try:
            numbers = _with_what_builds(lambda: _compile_all(path, options, progress))
        except DeviceError as error:
            raise EngineError(str(error)) from error
    return sum(n for n, _ in numbers), sum(n for _, n in numbers)


def _compile_all(
    path: Path, options: EngineOptions, progress: Callable[[float], None]
) -> list[tuple[int, int]]:
    """A model, and what guesses for it."""
    gguf, hparams = read_model(path, options)
    draft, prepared = _prepared(gguf, hparams, options)
    guessing = [] if draft is None else draft.prepare(prepared)
    return [_compile(each, progress) for each in (prepared, *guessing)]


def _compile(prepared: Preparation, progress: Callable[[float], None]) -> tuple[int, int]:
    compiling = prepared.compiling
    if compiling is None:
        raise EngineError(
            f"{prepared.devices[0].info.platform} compiles when a kernel is first run: "
            "nothing can be compiled ahead"
        )
    with stopping(compiling):
        compiling.begin(everything=True)
        while not compiling.wait(PROGRESS_SECONDS):
            progress(compiling.progress)
    progress(1.0)
    compiling.end()
    compiling.check_kept()
    return compiling.n_missing, compiling.n_wanted


def _load(
    path: Path,
    options: EngineOptions,
    progress: Callable[[float], None],
    wires: Sequence[Wire],
) -> Model:
    began = time.perf_counter()
    load_ahead(options.n_threads)
    stages = Stages(wires, path, options) if wires else None
    gguf, hparams = read_model(path, options)
    with ThreadPoolExecutor(1, "tokenizer") as pool:
        text = pool.submit(read_text, gguf, hparams, options)
        draft, prepared = _prepared(gguf, hparams, options, stages)
        chosen = time.perf_counter()
        hparams, sizes = prepared.hparams, prepared.sizes
        weights, runner, times = _made(prepared, options, progress)
        if stages is not None:
            stages.wait(progress)
        tokenizer, template = text.result()
    if options.profile:
        _log_profile(path, runner, sizes)
    placed_at = prepared.placement.mixers if runner.state_bytes else ()
    settings = settings_of(options, placed_at, prepared.media)
    if weights.rope_factors_long is not None:
        is_long = sizes.n_ctx_slot > hparams.rope_scaling.longest_short
        settings["RoPE factors"] = "long" if is_long else "short"
    template.check()
    adapters = prepared.additions.adapters
    kind = "" if draft is None else draft.kind
    info = model_info(gguf, hparams, prepared.devices, runner, options, settings, adapters, kind)
    scheduler = _scheduler(
        sizes,
        _checkpoints(sizes, runner, options, prepared.room),
        options,
        keeps_state=runner.state_bytes > 0,
        rewinds=runner.states.is_recurrent,
        whole_prompts=not hparams.causal,
        encodes=hparams.n_encoder > 0,
        shift_keep=int(tokenizer.add_bos) if options.context_shift else None,
    )
    drafter = None
    if draft is not None and info.speculation != OFF:
        guessing = draft.prepare(prepared, weights, runner.pages)
        made = [_made(each, draft.options, progress)[1] for each in guessing]
        drafter = draft.drafter(made, prepared, scheduler.cache, tokenizer.eog_ids, options)
    loading = f"{time.perf_counter() - began:.1f} s: read in {chosen - began:.1f} s, {times}"
    gguf.close()  # everything is on the device; the file's pages need not stay in memory
    return Model(
        runner, scheduler, tokenizer, template, replace(info, loading=loading), prepared.media,
        _speech(prepared, weights, tokenizer), drafter, _reserved(prepared, weights, options),
        stages,
    )  # fmt: skip


def _prepared(
    gguf: GGUFFile,
    hparams: Hyperparameters,
    options: EngineOptions,
    stages: Stages | None = None,
) -> tuple[DraftFile | Heads | None, Preparation]:
    """What guesses for a model, and the model."""
    if stages is not None:
        machine = stages.machine(find_machine(options, gguf.n_parameters))
        return None, stages.share(prepare(gguf, hparams, options, machine=machine))
    heads = open_heads(gguf, hparams, options)
    if heads is not None:
        hparams = heads.of_target(hparams)
        return heads, prepare(gguf, hparams, options, beside=heads.beside, draft=heads.states_for)
    file = open_draft(gguf, hparams, options)
    return file, prepare(gguf, hparams, options, beside=None if file is None else file.beside)


def load_stage(wire: Wire, wires: Sequence[Wire | None]) -> Runner:
    """Load what the first stage, at the other end of ``wire``, wants of this process, and tell it.
    ``wires``: to all stages, None for this one. Raises EngineError."""
    wanted: Serve = wire.receive()
    with refusing(wanted.path), sparse_heap():
        gguf, hparams = read_model(wanted.path, wanted.options)
        machine = find_machine(wanted.options, gguf.n_parameters)
        device = machine.open(0)
        info = device.info
        wire.send(Offer(info, kernels_of(device), machine.free(info)))
        prepared = prepare_share(gguf, hparams, wanted, device, wire.receive())
        _, runner, times = _made(replace(prepared, wires=wires), wanted.options, lambda share: None)
        gguf.close()
    log.info("stage %d of %d: %s", wanted.number, wanted.n_stages, times)
    wire.send(Loaded())
    return runner


def _made(
    prepared: Preparation, options: EngineOptions, progress: Callable[[float], None]
) -> tuple[ModelWeights, Runner, str]:
    """The weights, a runner with what the first request needs, and what took how long."""
    compiling = prepared.compiling
    with stopping(compiling):
        if compiling is not None:
            compiling.begin(everything=options.profile)
        weights, jobs = allocate_weights(
            prepared.gguf, prepared.hparams, prepared.devices, prepared.placement,
            prepared.additions,
        )  # fmt: skip
        runner = assemble(
            prepared.hparams, weights, prepared.placed, prepared.sizes,
            CacheTypes(options.cache_type_k, options.cache_type_v),
            flash=options.flash_attn != "off",
            media=None if prepared.media is None else prepared.media.shape,
            watched=options.check_tensors, lent=prepared.lent, wires=prepared.wires,
        )  # fmt: skip
        times = _fill(prepared, runner, jobs, progress)
    if compiling is not None:
        compiling.end()
    return weights, runner, times


@contextmanager
def stopping(compiling: Compiling | None) -> Iterator[None]:
    """If loading ends early, compiling does."""
    try:
        yield
    except BaseException:
        if compiling is not None:
            compiling.stop()
        raise


def _scheduler(
    sizes: Sizes,
    checkpoints: Checkpoints | None,
    options: EngineOptions,
    *,
    keeps_state: bool,
    rewinds: bool,
    whole_prompts: bool,
    encodes: bool,
    shift_keep: int | None,
) -> Scheduler:
    """``keeps_state``: slots keep something beside pages."""
    cache = PageCache(sizes.n_pages, PAGE)
    return Scheduler(
        cache, n_slots=sizes.n_slots, n_ctx_slot=sizes.n_ctx_slot, n_batch=sizes.n_batch,
        n_ubatch=sizes.n_tokens, max_outputs=sizes.n_outputs,
        share=not keeps_state or checkpoints is not None, checkpoints=checkpoints,
        whole_prompts=whole_prompts, encodes=encodes, shift_keep=shift_keep, rewinds=rewinds,
    )  # fmt: skip


def _checkpoints(
    sizes: Sizes, runner: Runner, options: EngineOptions, room: int | None
) -> Checkpoints | None:
    """``room``: bytes that they may take; None: what the options allow."""
    size = runner.state_bytes
    n = most_copies(options, sizes.n_slots, size)
    if not n:
        return None
    fitting = n if room is None else min(n, room // size)
    log.info(
        "checkpoints: at most %d of %.1f MiB each%s", fitting, size / 2**20,
        f" instead of {n}, which do not fit into memory" if fitting < n else "",
    )  # fmt: skip
    if not fitting:
        return None
    return Checkpoints(
        fitting, options.checkpoint_min_step or options.n_ubatch, size, runner.claim_copy
    )


def _fill(
    prepared: Preparation,
    runner: Runner,
    jobs: Sequence[Sequence[PackJob]],
    progress: Callable[[float], None],
) -> str:
    """Pack the weights and record what the first request needs, while it is compiled; what took
    how long, in words."""
    compiling = prepared.compiling
    here = [(on, some) for on, some in zip(prepared.placed, jobs, strict=True) if not on[0].is_meta]
    packing = PackRun(prepared.gguf, [(*on, job) for on, some in here for job in some])
    with ThreadPoolExecutor(2, "loading") as pool, stopping(compiling), packing:
        packed = pool.submit(packing.run)
        recorded = pool.submit(runner.warm_up, compiling)
        while wait([packed, recorded], PROGRESS_SECONDS, FIRST_EXCEPTION).not_done:
            share = 1.0 if compiling is None else compiling.progress
            progress((packing.progress + share) / 2)
            for future in (packed, recorded):
                if future.done():
                    future.result()
        progress(1.0)
        packed.result()
        recorded.result()
    return f"{packing}" + ("" if compiling is None else f", {compiling}")


def _log_profile(path: Path, runner: Runner, sizes: Sizes) -> None:
    from gguf_serve.engine.forward.profile import profile, typical_steps  # for --profile alone

    steps = typical_steps(
        sizes.n_ctx_slot, sizes.n_tokens, sizes.n_outputs, generates=runner.generates
    )
    log.info("profile of %s\n%s", path.name, "\n".join(profile(runner, steps)))


def _speech(prepared: Preparation, weights: ModelWeights, tokenizer: Tokenizer) -> Speech | None:
    """How texts are spoken, if the model speaks; and what speaks has the model's embeddings."""
    media, projector = prepared.media, prepared.projector
    if media is None or projector is None or media.speaker is None:
        return None
    from gguf_serve.engine.speech.lookup import Lookup

    embedding = weights.embedding
    device, programs = prepared.placed[weights.placement.parts[embedding.part]]
    media.encoder.embeddings = Lookup(embedding.matrix, device, programs).rows
    media.speaker.join(tokenizer, media.encoder.embeddings)
    return speech_of(projector, tokenizer, media.reader)


def _reserved(
    prepared: Preparation, weights: ModelWeights, options: EngineOptions
) -> Reserved | None:
    """What adapters are written into that come later."""
    room, gguf = options.adapter_room, prepared.gguf
    if not room.count:
        return None
    devices = [
        OnDevice(*on, reservations)
        for on, reservations in zip(prepared.placed, weights.reservations, strict=True)
    ]
    base = Adapted(gguf.path, gguf.architecture, gguf.tensors)
    return Reserved(base, room, weights.n_adapters - room.count, devices)
