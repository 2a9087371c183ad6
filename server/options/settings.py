"""Every command-line option, written once: a field of Settings with its flags beside it.

Flags, variables and defaults are llama-server's. cli.py makes click's options from the
fields; an option is added here only when something acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import click

from gguf_serve.server.options.http_settings import HttpSettings
from gguf_serve.server.options.limit_settings import LIMITS, SERVER
from gguf_serve.server.options.model_settings import ADAPTERS, ROPE
from gguf_serve.server.options.model_settings import FILE as MODEL_FILE
from gguf_serve.server.options.option import (
    COUNT,
    FILE,
    INT32_MAX,
    INTEGER,
    NATURAL,
    NUMBER,
    OR_ALL,
    Finite,
    option,
)
from gguf_serve.server.options.option_types import Shares, layer_count, slot_count, token_bias

SEED = click.IntRange(-INT32_MAX, 2**32 - 1)
CACHE_TYPE = click.Choice(("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"))
MODEL, DEVICE, CONTEXT = "Model", "Device", "Context"
SAMPLING, CHAT, LOGGING = "Sampling (defaults of requests)", "Chat", "Logging"
MEDIA = "Images and sounds"
GROUPS = (
    MODEL, DEVICE, CONTEXT, MODEL_FILE, ROPE, ADAPTERS, SAMPLING, CHAT, MEDIA, SERVER, LIMITS,
    LOGGING,
)  # fmt: skip


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(HttpSettings):
    model: str | None = option(
        "-m", "--model", group=MODEL, env="MODEL", type=FILE, default=None,
        help="GGUF file to serve",
    )
    alias: str | None = option(
        "-a", "--alias", group=MODEL, env="ALIAS", type=click.STRING, default=None,
        help="name of the model in answers; several with commas between",
    )
    tags: str | None = option(
        "--tags", group=MODEL, env="TAGS", type=click.STRING, default=None,
        help="words for the model's entry in /v1/models, commas between; they change nothing else",
    )
    demo: bool = option(
        "--demo", group=MODEL, default=False,
        help="serve a small demonstration model, downloaded once",
    )
    compile_only: bool = option(
        "--compile-only", group=MODEL, default=False,
        help="compile what the model needs with these options, for later starts, and exit",
    )
    device: str | None = option(
        "-dev", "--device", group=DEVICE, env="DEVICE", type=click.STRING, default=None,
        help="OpenCL devices for layers: numbers or parts of names of --list-devices, commas "
        "between; none: the CPU",
    )
    list_devices: bool = option(
        "--list-devices", group=DEVICE, default=False, help="print the devices and exit",
    )
    arch_list: bool = option(
        "--arch-list", group=MODEL, default=False,
        help="print the architectures that can be served and exit",
    )
    n_gpu_layers: str | int = option(
        "-ngl", "--gpu-layers", "--n-gpu-layers", group=DEVICE, env="N_GPU_LAYERS",
        type=layer_count, metavar="N|auto|all", default="auto",
        help="the last so many layers go to the devices, the others to the CPU",
    )
    split_mode: str = option(
        "-sm", "--split-mode", group=DEVICE, env="SPLIT_MODE",
        type=click.Choice(("none", "layer", "row", "tensor")), default="layer",
        help="layer: layers are shared out to all devices; none: one has all; the others are not "
        "supported",
    )
    tensor_split: tuple[float, ...] = option(
        "-ts", "--tensor-split", group=DEVICE, env="TENSOR_SPLIT", type=Shares(),
        metavar="N,N,...", default=(), help="shares of the devices; by their memory otherwise",
    )
    main_gpu: int = option(
        "-mg", "--main-gpu", group=DEVICE, env="MAIN_GPU", type=NATURAL, default=0,
        help="which of the devices has the model with --split-mode none",
    )
    override_tensor: tuple[str, ...] = option(
        "-ot", "--override-tensor", group=DEVICE, env="OVERRIDE_TENSOR", type=click.STRING,
        metavar="PATTERN=DEVICE,...", multiple=True, default=(),
        help="what computes with the tensors whose names match goes to this device, or to CPU",
    )
    cpu_moe: bool = option(
        "-cmoe", "--cpu-moe", group=DEVICE, env="CPU_MOE", default=False,
        help="experts on the CPU",
    )
    n_cpu_moe: int = option(
        "-ncmoe", "--n-cpu-moe", group=DEVICE, env="N_CPU_MOE", type=NATURAL,
        default=0, help="experts of the first so many layers on the CPU",
    )
    kv_offload: bool = option(
        "-kvo/-nkvo", "--kv-offload/--no-kv-offload", group=DEVICE, env="KV_OFFLOAD",
        default=True, help="the KV cache, and so attention, where the layers are, or on the CPU",
    )
    fit: str = option(
        "-fit", "--fit", group=DEVICE, env="FIT", type=click.Choice(("on", "off")), default="on",
        help="shrink what is not set (context, layers on the devices) to fit into memory",
    )
    fit_target: int = option(
        "-fitt", "--fit-target", group=DEVICE, env="FIT_TARGET", type=NATURAL,
        metavar="MiB", default=1024, help="memory to leave free on each device",
    )
    fit_ctx: int = option(
        "-fitc", "--fit-ctx", group=DEVICE, env="FIT_CTX", type=COUNT, default=4096,
        help="the smallest context that fitting may choose",
    )
    threads: int = option(
        "-t", "--threads", group=DEVICE, env="THREADS", type=INTEGER, default=-1,
        help="CPU threads; -1: all",
    )
    kernel_family: str | None = option(
        "--kernel-family", group=DEVICE, type=click.Choice(("simd", "simt")), default=None,
        help="kernels for CPUs (simd) or GPUs instead of the device's own; for tests",
    )
    activation_type: str = option(
        "--activation-type", group=DEVICE, env="ACTIVATION_TYPE",
        type=click.Choice(("auto", "int8", "int16")), default="auto",
        help="what CPUs multiply quantized weights with: int8 is faster, int16 more exact; auto: "
        "int8 if the processor has AVX2 but no VNNI",
    )
    ctx_size: int = option(
        "-c", "--ctx-size", group=CONTEXT, env="CTX_SIZE", type=NATURAL,
        default=0, help="tokens of context; 0: the model's",
    )
    n_predict: int = option(
        "-n", "--predict", "--n-predict", group=CONTEXT, env="N_PREDICT", type=OR_ALL,
        default=-1, help="tokens to generate at most; -1: no limit",
    )
    batch_size: int = option(
        "-b", "--batch-size", group=CONTEXT, env="BATCH", type=COUNT, default=2048,
        help="tokens of prompts in one step at most",
    )
    ubatch_size: int = option(
        "-ub", "--ubatch-size", group=CONTEXT, env="UBATCH", type=COUNT, default=512,
        help="tokens computed at once at most",
    )
    parallel: int = option(
        "-np", "--parallel", group=CONTEXT, env="N_PARALLEL", type=slot_count, metavar="N",
        default=-1, help="requests served at the same time (slots); -1: automatic",
    )
    kv_unified: bool | None = option(
        "-kvu/-no-kvu", "--kv-unified/--no-kv-unified", group=CONTEXT, env="KV_UNIFIED",
        default=None, help="any slot may use the whole context; so without -np",
    )
    flash_attn: str = option(
        "-fa", "--flash-attn", group=CONTEXT, env="FLASH_ATTN",
        type=click.Choice(("on", "off", "auto")), default="auto", bare="on",
        help="fused attention",
    )
    cache_type_k: str = option(
        "-ctk", "--cache-type-k", group=CONTEXT, env="CACHE_TYPE_K", type=CACHE_TYPE,
        default="f16", help="type of the keys in the KV cache",
    )
    cache_type_v: str = option(
        "-ctv", "--cache-type-v", group=CONTEXT, env="CACHE_TYPE_V", type=CACHE_TYPE,
        default="f16", help="type of the values in the KV cache",
    )
    cache_prompt: bool = option(
        "--cache-prompt/--no-cache-prompt", group=CONTEXT, env="CACHE_PROMPT", default=True,
        help="keep prompts, so that a common beginning is computed once",
    )
    context_shift: bool = option(
        "--context-shift/--no-context-shift", group=CONTEXT, env="CONTEXT_SHIFT", default=False,
        help="drop tokens when the context is full, instead of ending generation",
    )
    keep: int = option(
        "--keep", group=CONTEXT, type=OR_ALL, default=0,
        help="tokens of the prompt that a shift of the context keeps; -1: all",
    )
    swa_full: bool = option(
        "--swa-full", group=CONTEXT, env="SWA_FULL", default=False,
        help="layers with a sliding window keep all keys",
    )
    cache_ram: int = option(
        "-cram", "--cache-ram", group=CONTEXT, env="CACHE_RAM", metavar="MIB", type=OR_ALL,
        default=8192, help="memory for checkpoints at most; -1: no limit, 0: none",
    )
    ctx_checkpoints: int = option(
        "-ctxcp", "--ctx-checkpoints", "--swa-checkpoints", group=CONTEXT, env="CTX_CHECKPOINTS",
        type=NATURAL, default=32,
        help="checkpoints per slot at most, for models with a state or a window",
    )
    checkpoint_min_step: int = option(
        "-cms", "--checkpoint-min-step", group=CONTEXT, env="CHECKPOINT_MIN_SPACING_NT",
        type=COUNT, default=8192, help="tokens from checkpoint to checkpoint in long prompts",
    )
    seed: int = option(
        "-s", "--seed", group=SAMPLING, type=SEED, default=-1, help="-1: a random one",
    )
    samplers: str | None = option(
        "--samplers", group=SAMPLING, type=click.STRING, default=None,
        help="samplers in their order, ';' between",
    )
    sampler_seq: str | None = option(
        "--sampler-seq", "--sampling-seq", group=SAMPLING, type=click.STRING, default=None,
        help="the same with a letter for each, such as edskypmxt",
    )
    temp: float = option(
        "--temp", "--temperature", group=SAMPLING, env="TEMPERATURE", type=NUMBER,
        default=0.8, help="temperature; 0: always the likeliest token",
    )
    top_k: int = option(
        "--top-k", group=SAMPLING, env="TOP_K", type=INTEGER, default=40, help="0: off",
    )
    top_p: float = option(
        "--top-p", group=SAMPLING, env="TOP_P", type=NUMBER, default=0.95, help="1: off",
    )
    min_p: float = option(
        "--min-p", group=SAMPLING, env="MIN_P", type=NUMBER, default=0.05, help="0: off",
    )
    typical_p: float = option(
        "--typical", "--typical-p", group=SAMPLING, type=NUMBER, default=1.0, help="1: off",
    )
    top_n_sigma: float = option(
        "--top-nsigma", "--top-n-sigma", group=SAMPLING, type=NUMBER, default=-1.0,
        help="-1: off",
    )
    xtc_probability: float = option(
        "--xtc-probability", group=SAMPLING, type=NUMBER, default=0.0, help="0: off",
    )
    xtc_threshold: float = option(
        "--xtc-threshold", group=SAMPLING, type=NUMBER, default=0.1, help="above 0.5: off",
    )
    repeat_last_n: int = option(
        "--repeat-last-n", group=SAMPLING, type=OR_ALL, default=64,
        help="tokens that penalties look at; 0: off, -1: the context",
    )
    repeat_penalty: float = option(
        "--repeat-penalty", group=SAMPLING, env="REPEAT_PENALTY", type=NUMBER, default=1.0,
        help="1: off",
    )
    presence_penalty: float = option(
        "--presence-penalty", group=SAMPLING, env="PRESENCE_PENALTY", type=NUMBER,
        default=0.0, help="0: off",
    )
    frequency_penalty: float = option(
        "--frequency-penalty", group=SAMPLING, env="FREQUENCY_PENALTY", type=NUMBER,
        default=0.0, help="0: off",
    )
    dry_multiplier: float = option(
        "--dry-multiplier", group=SAMPLING, type=NUMBER, default=0.0, help="0: off",
    )
    dry_base: float = option(
        "--dry-base", group=SAMPLING, type=Finite(1.0), default=1.75,
        help="growth of the DRY penalty",
    )
    dry_allowed_length: int = option(
        "--dry-allowed-length", group=SAMPLING, type=NATURAL, default=2,
        help="repetitions up to this length are free",
    )
    dry_penalty_last_n: int = option(
        "--dry-penalty-last-n", group=SAMPLING, type=OR_ALL, default=64,
        help="tokens that DRY looks at; 0: off, -1: the context",
    )
    grammar: str | None = option(
        "--grammar", group=SAMPLING, type=click.STRING, metavar="GBNF", default=None,
        help="grammar that every answer must match",
    )
    grammar_file: str | None = option(
        "--grammar-file", group=SAMPLING, type=FILE, default=None, help="the same from a file",
    )
    json_schema: str | None = option(
        "-j", "--json-schema", group=SAMPLING, type=click.STRING, metavar="SCHEMA", default=None,
        help="JSON schema that every answer must match; {}: any JSON",
    )
    json_schema_file: str | None = option(
        "-jf", "--json-schema-file", group=SAMPLING, type=FILE, default=None,
        help="the same from a file",
    )
    dry_sequence_breaker: tuple[str, ...] = option(
        "--dry-sequence-breaker", group=SAMPLING, type=click.STRING, multiple=True, default=(),
        help="replaces the breakers of DRY; 'none': no breaker; repeatable",
    )
    dynatemp_range: float = option(
        "--dynatemp-range", group=SAMPLING, type=NUMBER, default=0.0, help="0: off",
    )
    dynatemp_exp: float = option(
        "--dynatemp-exp", group=SAMPLING, type=NUMBER, default=1.0,
        help="exponent of the dynamic temperature",
    )
    mirostat: Literal[0, 1, 2] = option(
        "--mirostat", group=SAMPLING, type=click.IntRange(0, 2), default=0, help="0: off",
    )
    mirostat_lr: float = option(
        "--mirostat-lr", group=SAMPLING, type=NUMBER, default=0.1, help="learning rate, eta",
    )
    mirostat_ent: float = option(
        "--mirostat-ent", group=SAMPLING, type=NUMBER, default=5.0,
        help="target entropy, tau",
    )
    ignore_eos: bool = option(
        "--ignore-eos", group=SAMPLING, default=False, help="do not end at the end token",
    )
    logit_bias: tuple[tuple[int, float], ...] = option(
        "-l", "--logit-bias", group=SAMPLING, type=token_bias, metavar="TOKEN(+/-)BIAS",
        multiple=True, default=(),
        help="make a token likelier or rarer, such as 15043+1 or 15043-1; repeatable",
    )
    reverse_prompt: tuple[str, ...] = option(
        "-r", "--reverse-prompt", group=SAMPLING, type=click.STRING, multiple=True, default=(),
        help="stop at this text unless the request names its own; repeatable",
    )
    special: bool = option(
        "-sp", "--special", group=SAMPLING, default=False, help="show special tokens in the text",
    )
    mmproj: str | None = option(
        "-mm", "--mmproj", group=MEDIA, env="MMPROJ", type=FILE, default=None,
        help="projector file (GGUF) of the model, for images or sounds",
    )
    use_mmproj: bool = option(
        "--mmproj-auto/--no-mmproj", group=MEDIA, env="MMPROJ_AUTO", default=True,
        help="use the projector file that is given; --no-mmproj: text only",
    )
    mmproj_offload: bool = option(
        "--mmproj-offload/--no-mmproj-offload", group=MEDIA, env="MMPROJ_OFFLOAD", default=True,
        help="encode on the model's device; else on the CPU",
    )
    mmproj_device: str | None = option(
        "-mmdev", "--mmproj-device", group=MEDIA, env="MTMD_BACKEND_DEVICE", type=click.STRING,
        default=None, help="the device that encodes, as in --device; none: the CPU",
    )
    image_min_tokens: int | None = option(
        "--image-min-tokens", group=MEDIA, env="IMAGE_MIN_TOKENS", type=COUNT, default=None,
        help="least tokens of an image, for models that take any size; the model's own otherwise",
    )
    image_max_tokens: int | None = option(
        "--image-max-tokens", group=MEDIA, env="IMAGE_MAX_TOKENS", type=COUNT, default=None,
        help="most tokens of an image",
    )
    media_path: str | None = option(
        "--media-path", group=MEDIA, default=None, metavar="FOLDER",
        type=click.Path(exists=True, file_okay=False, path_type=str),
        help="folder that file: URLs may name files of; none otherwise",
    )
    media_max_size: int = option(
        "--media-max-size", group=MEDIA, type=COUNT, default=32, metavar="MIB",
        help="most of an image or sound that is downloaded or read",
    )
    media_timeout: int = option(
        "--media-timeout", group=MEDIA, type=COUNT, default=10,
        help="seconds that a download may take",
    )
    media_allow_private: bool = option(
        "--media-allow-private/--no-media-allow-private", group=MEDIA, default=False,
        help="let URLs of images name hosts that are not on the public internet",
    )
    media_max_pixels: int = option(
        "--media-max-pixels", group=MEDIA, type=COUNT, default=64_000_000,
        help="most pixels of an image; larger ones are refused before they are decoded",
    )
    media_max_seconds: int = option(
        "--media-max-seconds", group=MEDIA, type=COUNT, default=1800,
        help="most seconds of a sound",
    )
    chat_template: str | None = option(
        "--chat-template", group=CHAT, env="CHAT_TEMPLATE", type=click.STRING, default=None,
        help="Jinja text or the name of a built-in template; the model's otherwise",
    )
    chat_template_file: str | None = option(
        "--chat-template-file", group=CHAT, env="CHAT_TEMPLATE_FILE", type=FILE, default=None,
        help="file with a Jinja template",
    )
    chat_template_kwargs: str | None = option(
        "--chat-template-kwargs", group=CHAT, env="CHAT_TEMPLATE_KWARGS", type=click.STRING,
        default=None, help="JSON object of variables for the template",
    )
    prefill_assistant: bool = option(
        "--prefill-assistant/--no-prefill-assistant", group=CHAT, env="PREFILL_ASSISTANT",
        default=True, help="continue an assistant message at the end of a conversation",
    )
    spm_infill: bool = option(
        "--spm-infill", group=CHAT, default=False,
        help="fill in with the suffix before the prefix, as some models have been trained",
    )
    skip_chat_parsing: bool = option(
        "--skip-chat-parsing/--no-skip-chat-parsing", group=CHAT, env="SKIP_CHAT_PARSING",
        default=False, help="leave reasoning and tool calls in the text as the model writes them",
    )
    reasoning: str = option(
        "-rea", "--reasoning", group=CHAT, env="REASONING",
        type=click.Choice(("on", "off", "auto")), default="auto",
        help="whether templates that can be told let the model think; auto: as they do it",
    )
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] = option(
        "--reasoning-format", group=CHAT, env="THINK", default="auto",
        type=click.Choice(("none", "auto", "deepseek", "deepseek-legacy")),
        help="where reasoning goes: none: into content; else into reasoning_content",
    )
    reasoning_preserve: bool = option(
        "--reasoning-preserve/--no-reasoning-preserve", group=CHAT, env="REASONING_PRESERVE",
        default=True, help="keep the reasoning of all earlier answers in the prompt, where the "
        "template can",
    )
    reasoning_effort: str | None = option(
        "--reasoning-effort", group=CHAT, env="REASONING_EFFORT", type=click.STRING,
        default=None, help="effort that the template is told, such as low; none: no thinking",
    )
    reasoning_budget: int = option(
        "--reasoning-budget", group=CHAT, env="THINK_BUDGET", type=OR_ALL, default=-1,
        help="tokens of reasoning before its end is forced; -1: no limit",
    )
    reasoning_budget_message: str = option(
        "--reasoning-budget-message", group=CHAT, env="THINK_BUDGET_MESSAGE", type=click.STRING,
        default="", help="text that is written before a forced end",
    )
    embedding: bool = option(
        "--embedding", "--embeddings", group=CHAT, env="EMBEDDINGS", default=False,
        help="accepted, as embeddings are always there",
    )
    reranking: bool = option(
        "--rerank", "--reranking", group=CHAT, env="RERANKING", default=False,
        help="accepted, as reranking is there for models with a head for it",
    )
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = option(
        "--pooling", group=CHAT, env="POOLING", default=None,
        type=click.Choice(("none", "mean", "cls", "last", "rank")),
        help="from tokens to one embedding; the model's otherwise",
    )
    embd_normalize: int = option(
        "--embd-normalize", group=CHAT, type=OR_ALL, default=2,
        help="norm of embeddings; -1: as they are, 0: largest is 32760, 2: Euclidean",
    )
    verbose: bool = option(
        "-v", "--verbose", group=LOGGING, default=False, help="log every request and more",
    )
    log_file: str | None = option(
        "--log-file", group=LOGGING, env="LOG_FILE", type=FILE, default=None,
        help="write the log to this file too",
    )
    profile: bool = option(
        "--profile", group=LOGGING, env="GGUF_SERVE_PROFILE", default=False,
        help="measure the kernels at start and log their times",
    )
# fmt: on
