"""What a person may choose when a model is loaded, and what is known of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gguf_serve.engine.media.limits import MediaLimits
from gguf_serve.engine.request import Pooling

DEFAULT_SLOTS = 4  # llama-server's, where --parallel is not given


@dataclass(frozen=True, slots=True)
class RopeOptions:
    """What a person sets in place of the file's; 0, a negative number or None leaves it."""

    kind: Literal["none", "linear", "yarn"] | None = None
    base: float = 0.0
    factor: float = 0.0  # of the context
    original_context: int = 0
    extrapolation: float = -1.0  # negative: 1 for YaRN, else 0
    attention_factor: float = -1.0
    beta_slow: float = -1.0
    beta_fast: float = -1.0


@dataclass(frozen=True, slots=True)
class AdapterState:
    """A LoRA adapter that is loaded; ``scale`` is that of requests which name none.
    ``invocation``: tokens from whose last place in a prompt on it counts (aLoRA); empty: always."""

    id: int
    path: Path
    scale: float
    invocation: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ControlVectors:
    """Files with their strengths; ``layers``: the first and the last, counted from 0, that the
    vectors are added to, None for all. The first layer never has one."""

    files: tuple[tuple[Path, float], ...] = ()
    layers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The engine's options; names and meanings are llama-server's."""

    n_ctx: int = 0  # tokens of KV cache, for all slots together; 0: the model's context
    n_batch: int = 2048
    n_ubatch: int = 512
    n_parallel: int = -1  # slots; -1: four, each of which may use the whole cache
    kv_unified: bool | None = None  # any slot may use the whole cache; None: as n_parallel says
    n_gpu_layers: str | int = "auto"  # the last so many layers on the devices, the rest on the CPU
    flash_attn: str = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    context_shift: bool = False  # a full context drops tokens instead of ending generation
    swa_full: bool = False  # layers with a window keep all keys, not those of the window only
    override_kv: tuple[tuple[str, bool | int | float | str], ...] = ()  # in the file's metadata
    check_tensors: bool = False  # all values, before loading
    rope: RopeOptions = RopeOptions()
    adapters: tuple[tuple[Path, float], ...] = ()  # LoRA files and their scales at first
    control: ControlVectors = ControlVectors()
    ctx_checkpoints: int = 32  # copies of states kept per slot
    checkpoint_min_step: int = 8192  # tokens from one to the next in a long prompt
    cache_ram_mib: int = 8192  # of the host's memory for them; -1: no limit
    device: str | None = None  # indices, or parts of names, of list_devices(); commas between
    split_mode: str = "layer"
    tensor_split: tuple[float, ...] = ()  # shares of the devices; none: by their memory
    main_gpu: int = 0  # which of the devices, if split_mode is none
    override_tensor: tuple[str, ...] = ()  # PATTERN=DEVICE
    cpu_moe: bool = False  # FFNs with experts on the CPU
    n_cpu_moe: int = 0  # those of the first so many layers
    kv_offload: bool = True  # False: attention and its KV cache on the CPU
    fit: bool = True  # shrink what is not set until it fits into memory
    fit_target: int = 1024  # MiB that fitting leaves free on each device
    fit_ctx: int = 4096  # tokens of context that fitting does not go below
    n_threads: int = -1
    mmproj: Path | None = None  # the projector file of images or sounds
    mmproj_device: str | None = None  # of the encoder; "none": a CPU, None: the text model's
    image_min_tokens: int | None = None  # of an image of free size; None: its type's own limits
    image_max_tokens: int | None = None
    media_limits: MediaLimits = field(default_factory=MediaLimits)
    chat_template: str | None = None  # Jinja source or the name of a built-in one
    kernel_family: str | None = None  # simd or simt instead of the device's own; for tests
    activation_type: str = "auto"  # or int8, int16: of the integers on CPUs
    profile: bool = False  # measure the kernels after loading and log the times


@dataclass(frozen=True, slots=True)
class ModelInfo:
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
    is_encoder: bool = False  # attention sees both ways: embeddings only, no completions
    ranks: bool = False  # it has a head that the pooling "rank" needs
    labels: tuple[str, ...] = ()  # of the head's scores, where the file names them
    fingerprint: str = ""  # of the file
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else its KV depends on; JSON
    cache_types: tuple[str, str] = ("f16", "f16")  # of K and V
    adapters: tuple[AdapterState, ...] = ()  # as they were loaded
    token_bytes: int = 0  # of weights, read for a token that is computed alone
    loading: str = ""  # what took how long, in words
