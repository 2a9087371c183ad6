"""What a person may choose when a model is loaded, and what is known of it afterwards.

An option of the engine is stated here, at its field, and nowhere else: name, default, range, flags
and help. Names and meanings are llama-server's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import Struct

from gguf_serve.engine.media.limits import MEDIA, MediaLimits
from gguf_serve.engine.option import (
    CACHE_TYPE,
    COUNT,
    INTEGER,
    NATURAL,
    NUMBER,
    OR_ALL,
    SWITCH,
    TEXT,
    Choice,
    Parsed,
    Real,
    option,
)
from gguf_serve.engine.option_values import (
    commas,
    key_values,
    layer_count,
    mebibytes,
    shares,
    slot_count,
)
from gguf_serve.engine.request import Denoising, Order, Pooling
from gguf_serve.engine.speculation_options import OFF, SpeculationOptions

DEVICE, CONTEXT, MODEL_FILE, ROPE = "Device", "Context", "The model's file", "RoPE and YaRN"
ADAPTERS, LOGGING = "Adapters", "Logging"
DEFAULT_SLOTS = 4  # llama-server's, where --parallel is not given
NOT_NEGATIVE = Real(0.0)


# fmt: off
@dataclass(frozen=True, slots=True)
class RopeOptions:
    """What a person sets in place of the file's; 0, a negative number or None leaves it."""

    kind: str | None = option(
        "--rope-scaling", group=ROPE, env="ROPE_SCALING_TYPE",
        type=Choice(("none", "linear", "yarn")), default=None,
        help="how RoPE is stretched to longer contexts; the model's otherwise",
    )
    base: float = option(
        "--rope-freq-base", group=ROPE, env="ROPE_FREQ_BASE", type=NOT_NEGATIVE, default=0.0,
        help="base of the frequencies; 0: the model's",
    )
    factor: float = option(
        "--rope-scale", group=ROPE, env="ROPE_SCALE", type=NOT_NEGATIVE, default=0.0,
        help="how many times longer contexts may be; 0: as the model says",
    )
    original_context: int = option(
        "--yarn-orig-ctx", group=ROPE, env="YARN_ORIG_CTX", type=NATURAL, default=0,
        help="context that the model was trained with; 0: as the model says",
    )
    extrapolation: float = option(
        "--yarn-ext-factor", group=ROPE, env="YARN_EXT_FACTOR", type=NUMBER, default=-1.0,
        help="share of extrapolation; 0: frequencies are interpolated only, -1: 1 for YaRN, else 0",
    )
    attention_factor: float = option(
        "--yarn-attn-factor", group=ROPE, env="YARN_ATTN_FACTOR", type=NUMBER, default=-1.0,
        help="what Q and K are multiplied with; -1: as the model says",
    )
    beta_slow: float = option(
        "--yarn-beta-slow", group=ROPE, env="YARN_BETA_SLOW", type=NUMBER, default=-1.0,
        help="turns below which a frequency is interpolated; -1: as the model says",
    )
    beta_fast: float = option(
        "--yarn-beta-fast", group=ROPE, env="YARN_BETA_FAST", type=NUMBER, default=-1.0,
        help="turns above which a frequency is kept; -1: as the model says",
    )


class AdapterState(Struct, frozen=True):
    """A LoRA adapter that is loaded; ``scale`` is that of requests which name none.
    ``invocation``: tokens from whose last place in a prompt on it counts (aLoRA); empty: always."""

    id: int
    path: Path
    scale: float
    invocation: tuple[int, ...] = ()
    fingerprint: str = ""  # of the file
    name: str = ""  # what requests may call it
    place: int = 0  # among those that the model has room for


class AdapterRoom(Struct, frozen=True):
    """For adapters that are loaded while the model is served: how many, and of what rank."""

    count: int = 0
    rank: int = 16


NO_ROOM = AdapterRoom()


@dataclass(frozen=True, slots=True)
class ControlVectors:
    """Files with their strengths, and the layers that the vectors are added to, counted from 0,
    None for all. The first layer never has one."""

    files: tuple[tuple[Path, float], ...] = ()
    layers: tuple[int, int] | None = option(
        "--control-vector-layer-range", group=ADAPTERS, type=NATURAL, pair=True,
        metavar="START END", default=None,
        help="layers that control vectors are added to, both included; all",
    )


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The engine's options."""

    device: str | None = option(
        "-dev", "--device", group=DEVICE, env="DEVICE", type=TEXT, default=None,
        help="OpenCL devices for layers: numbers or parts of names of --list-devices, commas "
        "between; none: the CPU",
    )
    n_gpu_layers: str | int = option(
        "-ngl", "--gpu-layers", "--n-gpu-layers", group=DEVICE, env="N_GPU_LAYERS",
        type=Parsed("N|auto|all", layer_count), default="auto",
        help="the last so many layers go to the devices, the others to the CPU",
    )
    split_mode: str = option(
        "-sm", "--split-mode", group=DEVICE, env="SPLIT_MODE",
        type=Choice(("none", "layer"), ("row", "tensor"), "a layer is computed on one device"),
        default="layer",
        help="layer: layers are shared out to all devices; none: one has all of them",
    )
    tensor_split: tuple[float, ...] = option(
        "-ts", "--tensor-split", group=DEVICE, env="TENSOR_SPLIT", type=Parsed("N,N,...", shares),
        default=(), help="shares of the devices; by their memory otherwise",
    )
    main_gpu: int = option(
        "-mg", "--main-gpu", group=DEVICE, env="MAIN_GPU", type=NATURAL, default=0,
        help="which of the devices has the model with --split-mode none",
    )
    override_tensor: tuple[str, ...] = option(
        "-ot", "--override-tensor", group=DEVICE, env="OVERRIDE_TENSOR",
        type=Parsed("PATTERN=DEVICE,...", commas), multiple=True, default=(),
        help="what computes with the tensors whose names match goes to this device, or to CPU",
    )
    cpu_moe: bool = option(
        "-cmoe", "--cpu-moe", group=DEVICE, env="CPU_MOE", default=False,
        help="experts on the CPU",
    )
    n_cpu_ffn: int = option(
        "-ncffn", "--n-cpu-ffn", group=DEVICE, env="N_CPU_FFN", type=NATURAL, default=0,
        help="FFNs without experts of the first so many layers on the CPU",
    )
    n_cpu_moe: int = option(
        "-ncmoe", "--n-cpu-moe", group=DEVICE, env="N_CPU_MOE", type=NATURAL, default=0,
        help="experts of the first so many layers on the CPU",
    )
    kv_offload: bool = option(
        "-kvo/-nkvo", "--kv-offload/--no-kv-offload", group=DEVICE, env="KV_OFFLOAD", default=True,
        help="the KV cache, and so attention, where the layers are, or on the CPU",
    )
    fit: bool = option(
        "-fit", "--fit", group=DEVICE, env="FIT", type=SWITCH, default=True,
        help="shrink what is not set (context, layers on the devices) to fit into memory",
    )
    fit_target: tuple[int, ...] = option(
        "-fitt", "--fit-target", group=DEVICE, env="FIT_TARGET",
        type=Parsed("MIB,...", mebibytes), default=(1024,),
        help="memory to leave free on each device; the last number counts for all further ones",
    )
    fit_ctx: int = option(
        "-fitc", "--fit-ctx", group=DEVICE, env="FIT_CTX", type=COUNT, default=4096,
        help="the smallest context that fitting may choose",
    )
    n_threads: int = option(
        "-t", "--threads", group=DEVICE, env="THREADS", type=INTEGER, default=-1,
        help="CPU threads; -1: all",
    )
    kernel_family: str | None = option(
        "--kernel-family", group=DEVICE, type=Choice(("simd", "simt")), default=None,
        help="kernels for CPUs (simd) or GPUs instead of the device's own; for tests",
    )
    activation_type: str = option(
        "--activation-type", group=DEVICE, env="GGUF_SERVE_ACTIVATION_TYPE",
        type=Choice(("auto", "int8", "int16")), default="auto",
        help="what CPUs multiply quantized weights with: int8 is faster, int16 more exact; auto: "
        "int8 for K-quants if the processor has AVX2 or VNNI but no AMX, for others too if it has "
        "no VNNI and the model at least 400 million parameters",
    )
    n_ctx: int = option(
        "-c", "--ctx-size", group=CONTEXT, env="CTX_SIZE", type=OR_ALL, default=-1,
        help="tokens of context; 0: the model's, -1: as many of these as fit into memory",
    )
    n_batch: int = option(
        "-b", "--batch-size", group=CONTEXT, env="BATCH", type=COUNT, default=2048,
        help="tokens of prompts in one step at most",
    )
    n_ubatch: int = option(
        "-ub", "--ubatch-size", group=CONTEXT, env="UBATCH", type=COUNT, default=512,
        help="tokens computed at once at most",
    )
    n_parallel: int = option(
        "-np", "--parallel", group=CONTEXT, env="N_PARALLEL", type=Parsed("N", slot_count),
        default=-1, help="requests served at the same time (slots); -1: four, each of which may "
        "use the whole context",
    )
    kv_unified: bool | None = option(
        "-kvu/-no-kvu", "--kv-unified/--no-kv-unified", group=CONTEXT, env="KV_UNIFIED",
        default=None, help="any slot may use the whole context; so without -np",
    )
    n_ctx_slot: int = option(
        "--kv-unified-per-slot", group=CONTEXT, env="KV_UNIFIED_PER_SLOT", type=NATURAL, default=0,
        help="tokens of context of each slot at most, and without -c enough for all; 0: no limit",
    )
    flash_attn: str = option(
        "-fa", "--flash-attn", group=CONTEXT, env="FLASH_ATTN", type=Choice(("on", "off", "auto")),
        default="auto", bare="on", help="fused attention",
    )
    cache_type_k: str = option(
        "-ctk", "--cache-type-k", group=CONTEXT, env="CACHE_TYPE_K", type=CACHE_TYPE,
        default="f16", help="type of the keys in the KV cache",
    )
    cache_type_v: str = option(
        "-ctv", "--cache-type-v", group=CONTEXT, env="CACHE_TYPE_V", type=CACHE_TYPE,
        default="f16", help="type of the values in the KV cache",
    )
    context_shift: bool = option(
        "--context-shift/--no-context-shift", group=CONTEXT, env="CONTEXT_SHIFT", default=False,
        help="drop tokens when the context is full, instead of ending generation",
    )
    swa_full: bool = option(
        "--swa-full", group=CONTEXT, env="SWA_FULL", default=False,
        help="layers with a sliding window keep all keys",
    )
    cache_ram_mib: int = option(
        "-cram", "--cache-ram", group=CONTEXT, env="CACHE_RAM", metavar="MIB", type=OR_ALL,
        default=8192,
        help="host memory for checkpoints, and KV pages of GPUs with memory of their own; "
        "-1: no limit, 0: none",
    )
    ctx_checkpoints: int = option(
        "-ctxcp", "--ctx-checkpoints", "--swa-checkpoints", group=CONTEXT, env="CTX_CHECKPOINTS",
        type=NATURAL, default=32,
        help="checkpoints per slot at most, for models with a state or a window",
    )
    checkpoint_min_step: int = option(
        "-cms", "--checkpoint-min-step", group=CONTEXT, env="CHECKPOINT_MIN_SPACING_NT",
        type=NATURAL, default=8192,
        help="tokens from checkpoint to checkpoint in long prompts; 0: one after every step",
    )
    cache_disk: str | None = option(
        "--cache-disk", group=CONTEXT, env="GGUF_SERVE_CACHE_DISK",
        type=Parsed("FOLDER", str), default=None,
        help="folder to keep KV pages in, across restarts; made if it is not there",
    )
    cache_disk_mib: int = option(
        "--cache-disk-size", group=CONTEXT, env="GGUF_SERVE_CACHE_DISK_SIZE",
        metavar="MIB", type=COUNT, default=8192,
        help="what that folder may hold, of all models",
    )
    cache_disk_min_tokens: int = option(
        "--cache-disk-min-tokens", group=CONTEXT, env="GGUF_SERVE_CACHE_DISK_MIN_TOKENS",
        type=COUNT, default=512,
        help="shorter prompts are not kept there",
    )
    diffusion_steps: int = option(
        "--diffusion-steps", group=CONTEXT, type=COUNT, default=128,
        help="forwards in which a diffusion model's text is made",
    )
    diffusion_order: str = option(
        "--diffusion-order", group=CONTEXT, type=Choice(get_args(Order)), default="confidence",
        help="which masks of a diffusion model become tokens first",
    )
    override_kv: tuple[tuple[str, bool | int | float | str], ...] = option(
        "--override-kv", group=MODEL_FILE, type=Parsed("KEY=TYPE:VALUE,...", key_values),
        multiple=True, default=(),
        help="in place of the file's metadata; types: int, float, bool, str; repeatable",
    )
    check_tensors: bool = option(
        "--check-tensors", group=MODEL_FILE, default=False,
        help="look for values that are not numbers before loading, and after each layer",
    )
    rope: RopeOptions = field(default_factory=RopeOptions)
    adapters: tuple[tuple[Path, float], ...] = ()  # LoRA files and their scales at first
    adapter_room: AdapterRoom = NO_ROOM
    speculation: SpeculationOptions = field(default_factory=SpeculationOptions)
    control: ControlVectors = field(default_factory=ControlVectors)
    mmproj: Path | None = None  # the projector file of images or sounds
    mmproj_device: str | None = None  # of the encoder; "none": a CPU, None: the text model's
    image_min_tokens: int | None = option(
        "--image-min-tokens", group=MEDIA, env="IMAGE_MIN_TOKENS", type=COUNT, default=None,
        help="least tokens of an image, for models that take any size; the model's own otherwise",
    )
    image_max_tokens: int | None = option(
        "--image-max-tokens", group=MEDIA, env="IMAGE_MAX_TOKENS", type=COUNT, default=None,
        help="most tokens of an image",
    )
    media_limits: MediaLimits = field(default_factory=MediaLimits)
    chat_template: str | None = None  # Jinja source or the name of a built-in one
    profile: bool = option(
        "--profile", group=LOGGING, env="GGUF_SERVE_PROFILE", default=False,
        help="measure the kernels at start and log their times",
    )
# fmt: on


PROJECTOR = "projector"  # in ModelInfo.settings: what gives the embeddings of images and sounds


class ModelInfo(Struct, frozen=True):
    """The served model and the device it runs on."""

    path: Path
    name: str
    architecture: str
    size_label: str
    n_params: int
    n_bytes: int
    file_type: str
    tensor_types: Mapping[str, int]
    n_ctx_train: int
    n_vocab: int
    n_embd: int
    vocab_type: int
    device_name: str
    driver: str
    kv_bytes: int
    pooling: Pooling = "none"  # the file's; what is asked for where a client does not say
    start_token: int | None = None  # of a decoder, whose prompts an encoder reads
    is_encoder: bool = False  # attention sees both ways: embeddings only, no completions
    denoising: Denoising | None = None  # how a diffusion model writes
    ranks: bool = False  # it has a head that the pooling "rank" needs
    rank_pooling: Pooling = "cls"  # what that reads
    rerank_template: str = ""  # what it reads; {query} and {document} stand for the texts
    rank_softmax: bool = False  # its scores are shares of their sum
    labels: tuple[str, ...] = ()  # of the head's scores, where the file names them
    has_own_memory: bool = False  # a device has memory that is not the host's
    fingerprint: str = ""  # of the file
    settings: Mapping[str, Any] = msgspec.field(
        default_factory=dict
    )  # what else its KV depends on; JSON
    cache_types: tuple[str, str] = ("f16", "f16")  # of K and V
    adapters: tuple[AdapterState, ...] = ()  # as they were loaded
    adapter_room: AdapterRoom = NO_ROOM
    token_bytes: int = 0  # of weights, read for a token that is computed alone
    speculation: SpeculationOptions = OFF  # what guesses, where the model allows it
    loading: str = ""  # what took how long, in words
