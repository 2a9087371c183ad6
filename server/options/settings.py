"""The server's options and those of its parts: what the command line gives.

An option is stated once, at the field of what acts on it: of the engine in ``EngineOptions``, of
how tokens are chosen in ``SamplingParams``, of requests in ``Defaults``, else here; what acts on
several, or on one in another form, is put together by configure.py. Flags, variables and defaults
are llama-server's. An option is added only when something acts on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gguf_serve.engine.media.limits import MEDIA
from gguf_serve.engine.option import (
    COUNT,
    FILE,
    FOLDER,
    NATURAL,
    OR_ALL,
    TEXT,
    Choice,
    Parsed,
    option,
)
from gguf_serve.engine.option_values import commas, scaled_files
from gguf_serve.engine.options import (
    ADAPTERS,
    CONTEXT,
    DEVICE,
    LOGGING,
    MODEL_FILE,
    NOT_NEGATIVE,
    ROPE,
    EngineOptions,
)
from gguf_serve.engine.sampling_params import GROUP
from gguf_serve.engine.speculation_options import GROUP as SPECULATION
from gguf_serve.server.options.http_settings import TOOLS, HttpSettings
from gguf_serve.server.options.limit_settings import LIMITS, SERVER
from gguf_serve.server.options.replica_settings import REPLICAS
from gguf_serve.server.options.request_defaults import CHAT, Defaults

MODEL = "Model"
SPEECH = "Speech"
GROUPS = (
    MODEL, DEVICE, CONTEXT, MODEL_FILE, ROPE, ADAPTERS, GROUP, SPECULATION, CHAT, MEDIA, SPEECH,
    SERVER, LIMITS, TOOLS, REPLICAS, LOGGING,
)  # fmt: skip
SCALED = Parsed("FILE:SCALE,...", scaled_files)


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(HttpSettings):
    model: str | None = option(
        "-m", "--model", group=MODEL, env="MODEL", type=FILE, default=None,
        help="GGUF file to serve; ollama:NAME is one that Ollama has here",
    )
    hf_repo: str | None = option(
        "-hf", "-hfr", "--hf-repo", group=MODEL, env="HF_REPO", type=TEXT,
        metavar="USER/NAME[:QUANT]", default=None,
        help="model of Hugging Face's hub, downloaded once, with its projector; "
        "without QUANT Q4_K_M, else Q8_0, else the first",
    )
    hf_file: str | None = option(
        "-hff", "--hf-file", group=MODEL, env="HF_FILE", type=TEXT, metavar="FILE", default=None,
        help="which file of that repository",
    )
    hf_token: str | None = option(
        "-hft", "--hf-token", group=MODEL, env="HF_TOKEN", type=TEXT, metavar="TOKEN", default=None,
        help="for repositories that want one",
    )
    model_url: str | None = option(
        "-mu", "--model-url", group=MODEL, env="MODEL_URL", type=TEXT, metavar="URL", default=None,
        help="model to download once",
    )
    docker_repo: str | None = option(
        "-dr", "--docker-repo", group=MODEL, env="DOCKER_REPO", type=TEXT,
        metavar="[REPO/]NAME[:TAG]", default=None, help="model of Docker Hub, downloaded once",
    )
    offline: bool = option(
        "--offline", group=MODEL, env="OFFLINE", default=False,
        help="download nothing: what is in the caches must do",
    )
    cache_list: bool = option(
        "-cl", "--cache-list", group=MODEL, default=False,
        help="print the models in the hub's cache, and Ollama's, and exit",
    )
    alias: str | None = option(
        "-a", "--alias", group=MODEL, env="ALIAS", type=TEXT, default=None,
        help="name of the model in answers; several with commas between",
    )
    tags: str | None = option(
        "--tags", group=MODEL, env="TAGS", type=TEXT, default=None,
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
    warmup_prompt: str | None = option(
        "--warmup-prompt", group=MODEL, env="GGUF_SERVE_WARMUP_PROMPT", type=FILE, default=None,
        help="system prompt, or .json with messages and tools, computed before the first request; "
        "with --compile-only for later starts, into --cache-disk",
    )
    arch_list: bool = option(
        "--arch-list", group=MODEL, default=False,
        help="print the architectures that can be served and exit",
    )
    completion_bash: bool = option(
        "--completion-bash", group=MODEL, default=False,
        help="print a script that completes options in bash, and exit",
    )
    list_devices: bool = option(
        "--list-devices", group=DEVICE, default=False, help="print the devices and exit",
    )
    engine: EngineOptions = field(default_factory=EngineOptions)
    defaults: Defaults = field(default_factory=Defaults)
    rope_freq_scale: float = option(
        "--rope-freq-scale", group=ROPE, env="ROPE_FREQ_SCALE", type=NOT_NEGATIVE, default=0.0,
        help="what frequencies are multiplied with, 1 / --rope-scale; 0: as the model says",
    )
    lora: tuple[str, ...] = option(
        "--lora", group=ADAPTERS, env="GGUF_SERVE_LORA", type=Parsed("FILE,...", commas),
        multiple=True, default=(), help="LoRA adapter; repeatable, or several with commas between",
    )
    lora_scaled: tuple[tuple[str, float], ...] = option(
        "--lora-scaled", group=ADAPTERS, type=SCALED, multiple=True, default=(),
        help="the same with a scale of its own",
    )
    lora_init_without_apply: bool = option(
        "--lora-init-without-apply", group=ADAPTERS, default=False,
        help="load adapters with the scale 0; requests and /lora-adapters set others",
    )
    lora_runtime: str | None = option(
        "--lora-runtime", group=ADAPTERS, env="GGUF_SERVE_LORA_RUNTIME", type=FOLDER, default=None,
        help="folder of LoRA adapters that /v1/load_lora_adapter may load; none",
    )
    max_loras: int = option(
        "--max-loras", group=ADAPTERS, type=COUNT, default=4,
        help="how many of them at once, for which memory is kept",
    )
    max_lora_rank: int = option(
        "--max-lora-rank", group=ADAPTERS, type=COUNT, default=16, help="their largest rank",
    )
    control_vector: tuple[str, ...] = option(
        "--control-vector", group=ADAPTERS, type=Parsed("FILE,...", commas), multiple=True,
        default=(), help="control vector; repeatable, or several with commas between",
    )
    control_vector_scaled: tuple[tuple[str, float], ...] = option(
        "--control-vector-scaled", group=ADAPTERS, type=SCALED, multiple=True, default=(),
        help="the same with a strength of its own",
    )
    escape: bool = option(
        "-e", "--escape/--no-escape", group=GROUP, default=True,
        help=r"read \n, \t, \x0a and the like in -r and --dry-sequence-breaker",
    )
    sampler_seq: str | None = option(
        "--sampler-seq", "--sampling-seq", group=GROUP, type=TEXT, default=None,
        help="samplers in their order, with a letter for each, such as edskypmxt",
    )
    grammar: str | None = option(
        "--grammar", group=GROUP, type=TEXT, metavar="GBNF", default=None,
        help="grammar that every answer must match",
    )
    grammar_file: str | None = option(
        "--grammar-file", group=GROUP, type=FILE, default=None, help="the same from a file",
    )
    json_schema: str | None = option(
        "-j", "--json-schema", group=GROUP, type=TEXT, metavar="SCHEMA", default=None,
        help="JSON schema that every answer must match; {}: any JSON",
    )
    json_schema_file: str | None = option(
        "-jf", "--json-schema-file", group=GROUP, type=FILE, default=None,
        help="the same from a file",
    )
    mmproj: str | None = option(
        "-mm", "--mmproj", group=MEDIA, env="MMPROJ", type=FILE, default=None,
        help="projector file (GGUF) of the model, for images or sounds",
    )
    mmproj_url: str | None = option(
        "-mmu", "--mmproj-url", group=MEDIA, env="MMPROJ_URL", type=TEXT, metavar="URL",
        default=None, help="projector file to download once",
    )
    draft_repo: str | None = option(
        "-hfd", "-hfrd", "--hf-repo-draft", "--spec-draft-hf", group=SPECULATION,
        env="SPEC_DRAFT_HF_REPO", type=TEXT, metavar="USER/NAME[:QUANT]", default=None,
        help="a model that guesses, of Hugging Face's hub; with -md: that file of it",
    )
    use_mmproj: bool = option(
        "--mmproj-auto/--no-mmproj", " /--no-mmproj-auto", group=MEDIA, env="MMPROJ_AUTO",
        default=True, help="use the projector file that is given; --no-mmproj: text only",
    )
    mmproj_offload: bool = option(
        "--mmproj-offload/--no-mmproj-offload", group=MEDIA, env="MMPROJ_OFFLOAD", default=True,
        help="encode on the model's device; else on the CPU",
    )
    mmproj_device: str | None = option(
        "-mmdev", "--mmproj-device", group=MEDIA, env="MTMD_BACKEND_DEVICE", type=TEXT,
        default=None, help="the device that encodes, as in --device; none: the CPU",
    )
    media_path: str | None = option(
        "--media-path", group=MEDIA, type=FOLDER, default=None,
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
    tts_speaker_file: str | None = option(
        "--tts-speaker-file", group=SPEECH, env="GGUF_SERVE_TTS_SPEAKER_FILE", type=FILE,
        default=None, help="a sound of the voice that speaks where a request names none",
    )
    voices: str | None = option(
        "--voices", group=SPEECH, env="GGUF_SERVE_VOICES", type=FOLDER, default=None,
        help="folder of sounds of voices, which requests name by their files without the ending",
    )
    tts_lang: str | None = option(
        "--tts-lang", group=SPEECH, env="GGUF_SERVE_TTS_LANG", type=TEXT, metavar="LANGUAGE",
        default=None, help="language where a request names none; the model's otherwise",
    )
    chat_template: str | None = option(
        "--chat-template", group=CHAT, env="CHAT_TEMPLATE", type=TEXT, default=None,
        help="Jinja text or the name of a built-in template; the model's otherwise",
    )
    chat_template_file: str | None = option(
        "--chat-template-file", group=CHAT, env="CHAT_TEMPLATE_FILE", type=FILE, default=None,
        help="file with a Jinja template",
    )
    chat_template_kwargs: str | None = option(
        "--chat-template-kwargs", group=CHAT, env="CHAT_TEMPLATE_KWARGS", type=TEXT,
        default=None, help="JSON object of variables for the template",
    )
    reasoning_preserve: bool = option(
        "--reasoning-preserve/--no-reasoning-preserve", group=CHAT, env="REASONING_PRESERVE",
        default=True, help="keep the reasoning of all earlier answers in the prompt, where the "
        "template can",
    )
    embedding: bool = option(
        "--embedding", "--embeddings", group=CHAT, env="EMBEDDINGS", default=False,
        help="embeddings alone: no text is generated; without it there are both",
    )
    reranking: bool = option(
        "--rerank", "--reranking", group=CHAT, env="RERANKING", default=False,
        help="reranking and embeddings alone; without it there is text too. Refused for a model "
        "without a head for it",
    )
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = option(
        "--pooling", group=CHAT, env="POOLING", default=None,
        type=Choice(("none", "mean", "cls", "last", "rank")),
        help="from tokens to one embedding; the model's otherwise",
    )
    embd_normalize: int = option(
        "--embd-normalize", group=CHAT, type=OR_ALL, default=2,
        help="norm of embeddings; -1: as they are, 0: largest is 32760, 2: Euclidean",
    )
    verbose: bool = option(
        "-v", "--verbose", "--log-verbose", group=LOGGING, default=False,
        help="log more, and requests that are made time and again (GET); OpenAI's completions have "
        "__verbose: the prompt, what the model wrote, all settings",
    )
    log_verbosity: int = option(
        "-lv", "--verbosity", "--log-verbosity", group=LOGGING, env="LOG_VERBOSITY", type=NATURAL,
        default=3, help="0, 1: errors only, 2: warnings too, 3: what happens, 4 and more: as -v",
    )
    log_disable: bool = option(
        "--log-disable", group=LOGGING, default=False, help="no log; why it ends is still said",
    )
    log_jsonl: bool = option(
        "--log-jsonl/--no-log-jsonl", group=LOGGING, env="LOG_JSONL", default=False,
        help="the log as a JSON object on each line, to stdout",
    )
    log_file: str | None = option(
        "--log-file", group=LOGGING, env="LOG_FILE", type=FILE, default=None,
        help="write the log to this file too",
    )
# fmt: on
