"""llama-server's options that are none of ours, on the command line and in the environment.

What is a hint about speed, memory or the log, and changes no answer, is taken with a line of
warning (without one if it asks for what is so anyway); the rest is refused with the reason, never
ignored. Names that llama-server has dropped are among both. Whoever builds one of these takes its
name out of its row and states the option instead (engine/option.py); ``tests/server/options``
compares both with llama-server's own list.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from gguf_serve.engine.option import FALSE, TRUE

ON, OFF = ("on",), ("off",)
THREADS = (
    "threads are the OpenCL driver's (-t says how many; taskset or numactl confine the process)"
)
LOADING = "the file is read once, into the memory of the devices, and its pages are let go"
CLI = "it is llama-cli's: here a request brings its prompt"


class Foreign(Struct, frozen=True):
    """Options with one reason, blanks between their names: those with a value, and flags that turn
    something on or off. ``neutral``: values, of flags on and off, that ask for nothing."""

    reason: str
    takes: str = ""
    on: str = ""
    off: str = ""
    env: str = ""  # after LLAMA_ARG_
    neutral: tuple[str, ...] = ()

    def asks_for_nothing(self, value: str) -> bool:
        return value in self.neutral or as_switch(value) in self.neutral


def as_switch(value: str) -> str:
    word = value.lower()
    return "on" if word in TRUE else "off" if word in FALSE else word


SPECULATION = (
    Foreign(
        "a model that guesses is computed as the one it guesses for, in as long a context",
        takes="-cd --ctx-size-draft -td --threads-draft --spec-draft-threads -tbd "
        "--threads-batch-draft --spec-draft-threads-batch -Cd --cpu-mask-draft "
        "--spec-draft-cpu-mask -Crd --cpu-range-draft --spec-draft-cpu-range "
        "--cpu-strict-draft --spec-draft-cpu-strict --prio-draft --spec-draft-prio "
        "--poll-draft --spec-draft-poll -Cbd --cpu-mask-batch-draft "
        "--spec-draft-cpu-mask-batch -Crbd --cpu-range-batch-draft "
        "--spec-draft-cpu-range-batch --cpu-strict-batch-draft "
        "--spec-draft-cpu-strict-batch --prio-batch-draft --spec-draft-prio-batch "
        "--poll-batch-draft --spec-draft-poll-batch -otd --override-tensor-draft "
        "--spec-draft-override-tensor -ncmoed --n-cpu-moe-draft --spec-draft-n-cpu-moe "
        "--spec-draft-ncmoe",
        on="-cmoed --cpu-moe-draft --spec-draft-cpu-moe",
        env="CTX_SIZE_DRAFT SPEC_DRAFT_CPU_MOE SPEC_DRAFT_N_CPU_MOE",
        neutral=OFF,
    ),
    Foreign(
        "a guess is one run of the likeliest tokens, found on the device",
        takes="--draft-p-split --spec-draft-p-split",
        on="--spec-draft-backend-sampling",
        off="--no-spec-draft-backend-sampling",
        env="SPEC_DRAFT_P_SPLIT SPEC_DRAFT_BACKEND_SAMPLING",
    ),
    Foreign(
        "the variable is LLAMA_ARG_SPEC_DRAFT_MODEL, _HF_REPO and _P_MIN now",
        env="MODEL_DRAFT HFD_REPO DRAFT_P_MIN",
    ),
    Foreign(
        "guesses are never made up for a measurement",
        takes="--spec-synth-len --spec-synth-rates",
        env="SPEC_SYNTH_LEN SPEC_SYNTH_RATES",
    ),
    Foreign("llama-server has it no more: vocabularies must agree", takes="--spec-replace"),
)

HINTS = (
    *SPECULATION,
    Foreign(
        "chat templates are always Jinja, and the prompts are the same",
        on="--jinja",
        off="--no-jinja",
        env="JINJA",
        neutral=ON,
    ),
    Foreign(
        "requests are always batched as they come",
        on="--cont-batching -cb",
        off="--no-cont-batching -nocb",
        env="CONT_BATCHING",
        neutral=ON,
    ),
    Foreign(LOADING, takes="-lm --load-mode", env="LOAD_MODE", neutral=("auto", "none")),
    Foreign(
        LOADING,
        on="--mmap -dio --direct-io",
        off="--no-mmap -ndio --no-direct-io",
        env="MMAP DIO",
        neutral=OFF,
    ),
    Foreign(LOADING, takes="-lzm --lazy-mode", env="LAZY_MODE", neutral=("auto", *OFF)),
    Foreign(
        "the memory of devices is their drivers', which have no such setting",
        on="--mlock",
        env="MLOCK",
        neutral=OFF,
    ),
    Foreign(
        THREADS,
        takes="--numa --poll --poll-batch --prio --prio-batch -C --cpu-mask -Cr --cpu-range "
        "--cpu-strict -Cb --cpu-mask-batch -Crb --cpu-range-batch --cpu-strict-batch",
        env="NUMA",
    ),
    Foreign("prompts have the threads of generation: -t", takes="-tb --threads-batch"),
    Foreign(
        "one event loop serves all connections",
        takes="--threads-http",
        env="THREADS_HTTP",
        neutral=("-1",),
    ),
    Foreign(
        "what is cached of a prompt is its beginning, wherever it was computed",
        takes="--cache-reuse -sps --slot-prompt-similarity",
        env="CACHE_REUSE",
        neutral=("0",),
    ),
    Foreign(
        "what idle slots have cached stays until its memory is needed",
        on="--cache-idle-slots",
        off="--no-cache-idle-slots",
        env="CACHE_IDLE_SLOTS",
        neutral=ON,
    ),
    Foreign(
        "the cache lies in pages, which need no defragmentation",
        takes="-dt --defrag-thold",
        env="DEFRAG_THOLD",
        neutral=("-1",),
    ),
    Foreign(
        "there is nothing to leave out: kernels are compiled before the server listens",
        on="--warmup",
        off="--no-warmup",
        neutral=ON + OFF,
    ),
    Foreign(
        "weights are always packed for the device",
        on="--repack",
        off="--no-repack -nr",
        env="REPACK",
        neutral=ON,
    ),
    Foreign(
        "the host's memory never keeps weights from being packed",
        on="--no-host",
        env="NO_HOST",
        neutral=ON + OFF,
    ),
    Foreign(
        "matrices are multiplied where they lie",
        on="--op-offload",
        off="--no-op-offload",
        neutral=ON + OFF,
    ),
    Foreign(
        "the samplers see what they need of the logits, on either side",
        on="-bs --backend-sampling",
        env="BACKEND_SAMPLING",
        neutral=OFF,
    ),
    Foreign(
        "times are measured in any case, by the server",
        on="--perf",
        off="--no-perf",
        env="PERF",
        neutral=ON + OFF,
    ),
    Foreign(
        "the log always has times and levels",
        on="--log-prefix --log-timestamps",
        off="--no-log-prefix --no-log-timestamps",
        env="LOG_PREFIX LOG_TIMESTAMPS",
        neutral=ON,
    ),
    Foreign(
        "the log has no colours",
        takes="--log-colors",
        on="-co --color",
        env="LOG_COLORS",
        neutral=("auto", *OFF),
    ),
    Foreign(
        "the log goes to stderr, and with --log-file to a file too",
        on="--log-enable --log-new --log-append --log-test --log-trace",
    ),
    Foreign(
        "images are encoded one by one",
        takes="--mtmd-batch-max-tokens",
        env="MTMD_BATCH_MAX_TOKENS",
    ),
    Foreign(
        "videos are decoded by PyAV, which brings FFmpeg's libraries",
        env="VIDEO_FFMPEG_DIR",
        takes="--video-ffmpeg-dir",
    ),
    Foreign(
        "the page's settings are chosen there, and kept by the browser",
        env="UI_CONFIG UI_CONFIG_FILE",
        takes="--ui-config --webui-config --ui-config-file --webui-config-file",
    ),
    Foreign(
        "one process serves one model",
        takes="--models-max",
        on="--models-autoload",
        off="--no-models-autoload",
        env="MODELS_MAX MODELS_AUTOLOAD",
        neutral=OFF,
    ),
    Foreign(
        "the kernels for a device are chosen by what it can do",
        on="-mmq --mul-mat-q -nommq --no-mul-mat-q --low-vram",
    ),
)

REFUSED = (
    Foreign(
        "llama-server has it no more: use --spec-draft-n-max or --spec-ngram-mod-n-max",
        takes="--draft --draft-n --draft-max", env="DRAFT_MAX",
    ),
    Foreign(
        "llama-server has it no more: use --spec-draft-n-min or --spec-ngram-mod-n-min",
        takes="--draft-min --draft-n-min", env="DRAFT_MIN",
    ),
    Foreign(
        "llama-server has it no more: each type has its own, as --spec-ngram-simple-size-n",
        takes="--spec-ngram-size-n --spec-ngram-size-m --spec-ngram-min-hits",
    ),
    Foreign(
        "llama-server has it no more: name the model with -hf",
        on="--embd-bge-small-en-default --embd-e5-small-en-default --embd-gte-small-default",
    ),
    Foreign(
        "devices of other machines cannot be used: start a server there", takes="--rpc", env="RPC",
    ),
    Foreign(
        "one process serves one model: start one for each, with a --port of its own",
        takes="--models-dir --models-preset", env="MODELS_DIR MODELS_PRESET",
    ),
    Foreign(
        "tools run where the server does: put it into a container", takes="--tools-runtime",
        env="TOOLS_RUNTIME",
    ),
    Foreign(
        "nobody's requests are passed on: --tools all and --mcp-servers-config are the tools",
        on="-ag --agent --ui-mcp-proxy --webui-mcp-proxy",
        off="-no-ag --no-agent --no-ui-mcp-proxy --no-webui-mcp-proxy",
        env="AGENT UI_MCP_PROXY",
        neutral=OFF,
    ),
    Foreign(
        "no prompt is written to a disk; -v logs requests without them", takes="--log-prompts-dir",
    ),
    Foreign(
        "self-extend is gone from llama-server too: --rope-scale stretches a context",
        takes="-gan --grp-attn-n -gaw --grp-attn-w", neutral=("1",),
    ),
    Foreign(
        "gone from llama-server too: a request's messages bring the system prompt",
        takes="-spf --system-prompt-file -sys --system-prompt -sysf",
    ),
    Foreign("use --log-jsonl for JSON", takes="--log-format", neutral=("text",)),
    Foreign("use -ctk f32 -ctv f32", on="--memory-f32 --no-memory-f16"),
    Foreign("use --no-slots", on="--slots-endpoint-disable"),
    Foreign("adapters (--lora) are added to the model that is served", takes="--lora-base"),
    Foreign(
        "the sampler is gone from llama-server too: --min-p does much the same",
        takes="--tfs --tfs-z", neutral=("1", "1.0"),
    ),
    Foreign(
        "penalties see the newline as any other token: --logit-bias can make it likelier",
        on="--penalize-nl", off="--no-penalize-nl", neutral=ON,
    ),
    Foreign(
        "the model's file says it (--override-kv changes it)",
        takes="-gqa --gqa -eps --rms-norm-eps",
    ),
    Foreign(
        "a model that speaks has what makes its sounds in its projector (-mm)",
        on="--tts-use-guide-tokens --tts-oute-default",
        takes="-mv --model-vocoder -hfv -hfrv --hf-repo-v -hffv --hf-file-v",
    ),
    Foreign(
        CLI, takes="-p --prompt -f --file -bf --binary-file --prompt-cache --in-prefix --in-suffix "
        "--image --audio",
        on="-i --interactive -if --interactive-first -cnv --conversation -no-cnv "
        "--no-conversation -st --single-turn --simple-io -mli --multiline-input "
        "--verbose-prompt --no-display-prompt --in-prefix-bos --prompt-cache-all "
        "--prompt-cache-ro",
    ),
)  # fmt: skip

Verdict = Literal["taken", "hint", "refused"]


def names(row: Foreign) -> dict[str, str | None]:
    """The options of a row, with the value that a flag has; None: it takes one."""
    return (
        dict.fromkeys(row.takes.split())
        | dict.fromkeys(row.on.split(), "on")
        | dict.fromkeys(row.off.split(), "off")
    )


def variables(row: Foreign) -> dict[str, str | None]:
    """The variables of a row likewise; whatever LLAMA_ARG_NO_X is set to, it turns X off."""
    found = dict.fromkeys((f"LLAMA_ARG_{name}" for name in row.env.split()), None)
    if row.off:
        found |= dict.fromkeys((f"LLAMA_ARG_NO_{name}" for name in row.env.split()), "off")
    return dict(found)


ROWS = HINTS + REFUSED
FLAGS = {flag: (row, value) for row in ROWS for flag, value in names(row).items()}
VARIABLES = {name: (row, value) for row in ROWS for name, value in variables(row).items()}


def judged(row: Foreign, value: str) -> Verdict:
    if row.asks_for_nothing(value):
        return "taken"
    return "hint" if row in HINTS else "refused"
