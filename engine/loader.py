"""From a GGUF file and options to everything that the engine's thread needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import kernels.device as devices
from engine.adapters import Adapter, read_adapters
from engine.assembly import CacheTypes, Sizes, assemble, most_copies
from engine.cache import PageCache
from engine.chat.template import ChatTemplate, named_template, select_template
from engine.checkpoints import Checkpoints
from engine.control import read_directions
from engine.errors import EngineError, ModelError, naming, refusing
from engine.fit import Fitting, outline
from engine.gguf import GGUFFile, count_tensor_types, file_type_name, open_gguf
from engine.machine import find_machine
from engine.media_loader import Media, load_media, open_media
from engine.models.arch import Hyperparameters
from engine.models.hyperparameters import read_hyperparameters, with_rope
from engine.models.table import find_architecture
from engine.options import AdapterState, EngineOptions, ModelInfo
from engine.profile import profile, typical_steps
from engine.runner import Runner
from engine.scheduler import Scheduler
from engine.tensor_values import check_tensor_values
from engine.text.tokenizer import Tokenizer, load_tokenizer
from engine.weights import Additions, allocate_weights, pack_weights
from kernels.device import Device, DeviceError, DeviceInfo
from kernels.kv import KV_TYPES, PAGE
from kernels.program import Programs
from kernels.weights import PackJob

log = logging.getLogger(__name__)
IMAGE_WEIGHTS = "blk.0.vis_attn_qkv.weight"  # CogVLM has a second matrix for images


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is ready to serve."""

    runner: Runner
    scheduler: Scheduler
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    info: ModelInfo
    media: Media | None


def list_devices() -> list[DeviceInfo]:
    """The OpenCL devices of this machine."""
    return devices.list_devices()


def free_memory(device: DeviceInfo) -> int:
    """Bytes that can be allocated on a device."""
    return devices.free_memory(device)


def load_model(path: Path, options: EngineOptions, progress: Callable[[float], None]) -> Model:
    """Load a model. Raises ModelError for its file, EngineError for device or options."""
    with refusing(path):
        return _load(path, options, progress)


def _load(path: Path, options: EngineOptions, progress: Callable[[float], None]) -> Model:
    gguf = open_gguf(path)
    with naming(path):
        gguf.override(dict(options.override_kv))
        if options.check_tensors:
            check_tensor_values(gguf)
        hparams = read_hyperparameters(gguf, find_architecture(gguf.architecture))
        tokenizer = load_tokenizer(gguf.metadata)
        _check_vocabulary(gguf, hparams, tokenizer)
    hparams = with_rope(hparams, options.rope)
    _check_cache_types(options)
    template = _chat_template(gguf.metadata, tokenizer, options)
    projector = open_media(options, hparams)
    if projector is not None and IMAGE_WEIGHTS in gguf.tensors:
        hparams = replace(hparams, image_experts=True)
    try:
        machine = find_machine(options)
        first = machine.open(0)
        media = None if projector is None else load_media(projector, options, hparams, first)
        shape = None if media is None else media.shape
        machine = machine.without(first.info, first.usage.n_bytes)
        if media is not None and media.device is not first:
            machine = machine.without(media.device.info, media.device.usage.n_bytes)
        additions = _additions(gguf, hparams, options)
        model = outline(gguf, hparams, first, additions)
        if additions.directions and model.weights.residuals is not None:
            raise EngineError(f"control vectors are not supported in {gguf.architecture}'s streams")
        fitting = Fitting(model, options, machine, shape)
        chosen = fitting.choose()
        room = fitting.room_for_checkpoints(chosen)
        opened, sizes = [machine.open(at) for at in chosen.devices], chosen.sizes
        placed = [(device, Programs(device)) for device in opened]
        weights, jobs = allocate_weights(gguf, hparams, opened, chosen.placement, additions)
        runner = assemble(
            hparams, weights, placed, sizes,
            CacheTypes(options.cache_type_k, options.cache_type_v),
            flash=options.flash_attn != "off", media=shape,
        )  # fmt: skip
        _pack(gguf, runner, placed, jobs, progress)
        if options.profile:
            _log_profile(path, runner, sizes)
    except DeviceError as error:
        raise EngineError(str(error)) from error
    placed_at = chosen.placement.mixers if runner.state_bytes else ()
    settings = _settings(options, placed_at)
    info = _info(gguf, hparams, opened, runner, options, settings, additions.adapters)
    gguf.close()  # everything is on the device; the file's pages need not stay in memory
    return Model(
        runner,
        _scheduler(
            sizes,
            _checkpoints(sizes, runner, options, room),
            options,
            keeps_state=runner.state_bytes > 0,
            whole_prompts=not hparams.causal,
            shift_keep=int(tokenizer.add_bos) if options.context_shift else None,
        ),
        tokenizer,
        template,
        info,
        media,
    )


def _scheduler(
    sizes: Sizes,
    checkpoints: Checkpoints | None,
    options: EngineOptions,
    *,
    keeps_state: bool,
    whole_prompts: bool,
    shift_keep: int | None,
) -> Scheduler:
    """``keeps_state``: slots keep something beside pages."""
    cache = PageCache(sizes.n_pages, PAGE)
    return Scheduler(
        cache, n_slots=sizes.n_slots, n_ctx_slot=sizes.n_ctx_slot, n_batch=sizes.n_batch,
        n_ubatch=sizes.n_tokens, max_outputs=sizes.n_outputs,
        share=not keeps_state or checkpoints is not None, checkpoints=checkpoints,
        whole_prompts=whole_prompts, shift_keep=shift_keep,
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
    return Checkpoints(fitting, options.checkpoint_min_step, size, runner.states.claim)


def _driver(device: Device) -> str:
    """The driver, and what a person should know of how it computes."""
    rounded = ", activations in int8" * device.byte_codes
    return f"{device.info.platform}, {device.info.driver}{rounded}"


def _check_vocabulary(gguf: GGUFFile, h: Hyperparameters, tokenizer: Tokenizer) -> None:
    """Every token that can be drawn has a text, and every one of the text an embedding."""
    if tokenizer.n_vocab != h.n_vocab:
        raise ModelError(
            f"{gguf.path}: the tokenizer has {tokenizer.n_vocab} tokens, "
            f"token_embd.weight {h.n_vocab} rows"
        )


def _check_cache_types(options: EngineOptions) -> None:
    for name in (options.cache_type_k, options.cache_type_v):
        if name not in KV_TYPES:
            raise EngineError(f"KV cache type {name!r} is not supported: {', '.join(KV_TYPES)}")


def _additions(gguf: GGUFFile, h: Hyperparameters, options: EngineOptions) -> Additions:
    return Additions(
        read_adapters([path for path, _ in options.adapters], gguf),
        read_directions(options.control, h.n_layers, h.n_embd),
    )


def _pack(
    gguf: GGUFFile,
    runner: Runner,
    placed: Sequence[tuple[Device, Programs]],
    jobs: Sequence[Sequence[PackJob]],
    progress: Callable[[float], None],
) -> None:
    """Fill the matrices, and build the programs meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        recorded = pool.submit(runner.warm_up)
        listed = [(*on, job) for on, some in zip(placed, jobs, strict=True) for job in some]
        pack_weights(gguf, listed, progress)
        recorded.result()


def _log_profile(path: Path, runner: Runner, sizes: Sizes) -> None:
    steps = typical_steps(sizes.n_ctx_slot, sizes.n_tokens, sizes.n_outputs)
    log.info("profile of %s\n%s", path.name, "\n".join(profile(runner, steps)))


def _chat_template(
    metadata: Mapping[str, Any], tokenizer: Tokenizer, options: EngineOptions
) -> ChatTemplate:
    def text(token: int | None) -> str:
        return "" if token is None else tokenizer.piece(token).decode("utf-8", "replace")

    if options.chat_template is not None:
        source, tool_use = named_template(options.chat_template), None
    else:
        source, tool_use = select_template(metadata)
    return ChatTemplate(
        source,
        bos_token=text(tokenizer.bos_id),
        eos_token=text(tokenizer.eos_id),
        tool_use=tool_use,
    )


def _info(
    gguf: GGUFFile,
    h: Hyperparameters,
    devices: Sequence[Device],
    runner: Runner,
    options: EngineOptions,
    settings: Mapping[str, Any],
    adapters: Sequence[Adapter],
) -> ModelInfo:
    metadata = gguf.metadata
    return ModelInfo(
        path=gguf.path,
        name=str(metadata.get("general.name") or gguf.path.stem),
        architecture=gguf.architecture,
        size_label=str(metadata.get("general.size_label") or ""),
        n_params=gguf.n_parameters,
        n_bytes=gguf.n_bytes,
        file_type=file_type_name(metadata),
        tensor_types=count_tensor_types(gguf),
        n_ctx_train=h.n_ctx_train,
        n_vocab=h.n_vocab,
        n_embd=h.n_embd,
        vocab_type={"llama": 1, "gpt2": 2, "bert": 3, "t5": 4}.get(
            str(metadata.get("tokenizer.ggml.model")), 0
        ),
        device_name=" + ".join(device.info.name for device in devices),
        driver="; ".join(_driver(device) for device in devices),
        kv_bytes=sum(pages.n_bytes for pages in runner.pages),
        pooling=h.pooling,
        is_encoder=not h.causal,
        ranks=runner.ranks,
        labels=h.labels,
        fingerprint=gguf.fingerprint(),
        settings=settings,
        cache_types=(options.cache_type_k, options.cache_type_v),
        adapters=tuple(
            AdapterState(i, path, scale, adapter.invocation)
            for i, ((path, scale), adapter) in enumerate(
                zip(options.adapters, adapters, strict=True)
            )
        ),
        token_bytes=runner.token_bytes,
    )


def _settings(options: EngineOptions, placed_at: Sequence[int]) -> dict[str, Any]:
    """What the KV depends on beside the file, and the order of what slots keep beside pages:
    ``placed_at``, the devices of the layers."""
    vectors = []
    for path, strength in options.control.files:
        with open_gguf(path) as gguf:
            vectors.append([gguf.fingerprint(), strength])
    return {
        "RoPE options": asdict(options.rope),
        "overridden metadata": [list(pair) for pair in options.override_kv],
        "control vectors": vectors,
        "control vectors for layers": list(options.control.layers or ()),
        "layers on devices": list(placed_at),
    }
