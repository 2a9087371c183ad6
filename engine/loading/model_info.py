"""What is told of a model that has been loaded, and what its KV depends on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.gguf.file import GGUFFile, count_tensor_types, file_type_name, open_gguf
from gguf_serve.engine.loading.media_loader import Media
from gguf_serve.engine.loading.reasons import activation_name
from gguf_serve.engine.options import PROJECTOR, AdapterState, EngineOptions, ModelInfo
from gguf_serve.engine.recording.adapters import Adapter
from gguf_serve.engine.request import Order
from gguf_serve.engine.speculation_options import (
    DFLASH,
    DRAFT,
    DSPARK,
    EAGLE,
    OFF,
    SpeculationOptions,
)
from gguf_serve.kernels.opencl.device import Device

log = logging.getLogger(__name__)
# llama.cpp's numbers of the kinds of vocabularies
VOCAB_TYPES = {"llama": 1, "gpt2": 2, "bert": 3, "t5": 4, "rwkv": 5, "plamo2": 6}
# Why a type of guesses does nothing
WITHOUT_FILE = "-md, which names a model that guesses, is missing, or names one of another type"
NOT_YET = "no such model can be loaded yet"
MISSING = dict.fromkeys((DRAFT, EAGLE, DFLASH, DSPARK), WITHOUT_FILE)


def model_info(
    gguf: GGUFFile,
    h: Hyperparameters,
    devices: Sequence[Device],
    runner: Runner,
    options: EngineOptions,
    settings: Mapping[str, Any],
    adapters: Sequence[Adapter],
    guesses: str,
) -> ModelInfo:
    """What is told of a model that has been loaded. ``settings``: what its KV depends on beside the
    file; ``guesses``: the type of guesses that a model makes for it, if one does."""
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
        n_embd=h.state_size,
        vocab_type=VOCAB_TYPES.get(str(metadata.get("tokenizer.ggml.model")), 0),
        device_name=" + ".join(device.info.name for device in devices),
        driver="; ".join(_driver(device) for device in devices),
        kv_bytes=sum(pages.n_bytes for pages in runner.pages),
        has_own_memory=any(device.has_own_memory for device in devices),
        pooling=h.pooling,
        is_encoder=not h.generates,
        denoising=None
        if h.denoising is None
        else replace(
            h.denoising, steps=options.diffusion_steps, order=cast(Order, options.diffusion_order)
        ),
        start_token=h.start_token if h.n_encoder else None,
        ranks=runner.ranks,
        rank_pooling=h.rank_pooling,
        rerank_template=str(metadata.get("tokenizer.chat_template.rerank") or ""),
        rank_softmax="softmax_rank_head" in h.arch.quirks,
        labels=h.labels,
        fingerprint=gguf.fingerprint(),
        settings=settings,
        cache_types=(options.cache_type_k, options.cache_type_v),
        adapters=tuple(
            AdapterState(i, path, scale, adapter.invocation, adapter.fingerprint, path.stem, i)
            for i, ((path, scale), adapter) in enumerate(
                zip(options.adapters, adapters, strict=False)
            )
        ),
        adapter_room=options.adapter_room,
        token_bytes=runner.token_bytes,
        speculation=_speculation(h, runner, options, guesses),
    )


def _driver(device: Device) -> str:
    """The driver, and what a person should know of how it computes."""
    said = f"{device.info.platform}, {device.info.driver}"
    if device.byte_codes != "none":
        said += f", activations in {activation_name(device)}"
    return said


def _speculation(
    h: Hyperparameters, runner: Runner, options: EngineOptions, kind: str
) -> SpeculationOptions:
    """What guesses: nothing where no token follows another, and where guesses change the bits of
    what they verify only what is asked for. ``kind``: of the model that does, if there is one."""
    for name in options.speculation.missing:
        if name != kind:
            log.warning("--spec-type %s does nothing: %s", name, MISSING.get(name, NOT_YET))
    is_plain = h.causal and h.generates and not h.n_encoder and not h.takes_states
    asked = options.speculation
    if not is_plain:
        if asked.is_asked:
            log.warning("nothing is guessed for this model: no token follows another in it")
        return OFF
    if runner.is_exact:
        return asked
    if asked.is_asked:
        log.warning("guesses may change what is written by rounding, on this device")
    return asked if asked.is_asked else OFF


def settings_of(
    options: EngineOptions, placed_at: Sequence[int], media: Media | None
) -> dict[str, Any]:
    """What the KV depends on beside the file, and the order of what slots keep beside pages:
    ``placed_at``, the devices of the layers."""
    vectors = []
    for path, strength in options.control.files:
        with open_gguf(path) as gguf:
            vectors.append([gguf.fingerprint(), strength])
    projector = {} if media is None else {PROJECTOR: media.fingerprint}
    return projector | {
        "RoPE options": asdict(options.rope),
        "overridden metadata": [list(pair) for pair in options.override_kv],
        "control vectors": vectors,
        "control vectors for layers": list(options.control.layers or ()),
        "layers on devices": list(placed_at),
    }
