"""llama-server's options that are none of ours, on the command line and in the environment.

What asks for what is done here anyway is taken; the rest is refused with the reason, never
ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import click

THREADS = "threads are the OpenCL driver's (taskset or numactl confine the process)"
LOADING = "the file is read once, into the memory of the devices, and its pages are let go"
LOGGING = "there are two levels of the log, with -v and without; it goes to stderr"
TRUE, FALSE = ("true", "1", "on", "enabled"), ("false", "0", "off", "disabled")


@dataclass(frozen=True, slots=True)
class Foreign:
    """Options with one reason. ``taken`` are flags without a value that change nothing, and
    ``neutral`` the values of the others, and of the variables, that ask for nothing."""

    reason: str
    refused: tuple[str, ...]
    taken: tuple[str, ...] = ()
    neutral: tuple[str, ...] = ()
    env: tuple[str, ...] = ()  # after LLAMA_ARG_


FOREIGN = (
    Foreign(
        "chat templates are always Jinja", ("--no-jinja",), ("--jinja",), TRUE, ("JINJA",),
    ),
    Foreign(
        "requests are always batched as they come", ("--no-cont-batching", "-nocb"),
        ("--cont-batching", "-cb"), TRUE, ("CONT_BATCHING",),
    ),
    Foreign(
        "models are not downloaded here: fetch the file, for instance with `hf download`, and "
        "give it with -m or --mmproj",
        (
            "-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-hft", "--hf-token", "-mu",
            "--model-url", "-mmu", "--mmproj-url", "-dr", "--docker-repo",
        ),
        ("--offline",), env=("HF_REPO", "HF_FILE", "MODEL_URL", "MMPROJ_URL", "DOCKER_REPO"),
    ),
    Foreign(
        "there is no speculative decoding here",
        (
            "-md", "--model-draft", "--spec-draft-model", "-hfd", "--hf-repo-draft", "-ngld",
            "--gpu-layers-draft", "--n-gpu-layers-draft", "-ctkd", "--cache-type-k-draft", "-ctvd",
            "--cache-type-v-draft", "-cd", "--ctx-size-draft", "-devd", "--device-draft", "--draft",
            "--draft-n", "--draft-max", "--draft-min", "--draft-p-min", "--spec-type",
            "--spec-draft-n-max", "--spec-draft-n-min", "-lcs", "--lookup-cache-static", "-lcd",
            "--lookup-cache-dynamic",
        ),
        neutral=("none",),
        env=(
            "MODEL_DRAFT", "SPEC_DRAFT_MODEL", "SPEC_TYPE", "HFD_REPO", "DRAFT_MAX", "DRAFT_MIN",
            "DRAFT_P_MIN", "N_GPU_LAYERS_DRAFT", "CTX_SIZE_DRAFT",
        ),
    ),
    Foreign(
        LOADING,
        ("-lm", "--load-mode"), ("--no-mmap",), ("auto", "none", *FALSE), ("LOAD_MODE", "MMAP"),
    ),
    Foreign(LOADING, ("--mmap", "-dio", "--direct-io", "-ndio", "--no-direct-io")),
    Foreign(
        "the memory of devices is their drivers', which have no such setting", ("--mlock",),
        neutral=FALSE, env=("MLOCK",),
    ),
    Foreign(
        THREADS,
        (
            "--numa", "--poll", "--poll-batch", "--prio", "--prio-batch", "-C", "--cpu-mask", "-Cr",
            "--cpu-range", "--cpu-strict",
        ),
        env=("NUMA",),
    ),
    Foreign("prompts have the threads of generation: -t", ("-tb", "--threads-batch")),
    Foreign(
        "one event loop serves all connections", ("--threads-http",), neutral=("-1",),
        env=("THREADS_HTTP",),
    ),
    Foreign(
        "what is cached of a prompt is its beginning, wherever it was computed",
        ("--cache-reuse", "-sps", "--slot-prompt-similarity"), neutral=("0",), env=("CACHE_REUSE",),
    ),
    Foreign(
        "what idle slots have cached stays until its memory is needed", ("--no-cache-idle-slots",),
        ("--cache-idle-slots",), TRUE, ("CACHE_IDLE_SLOTS",),
    ),
    Foreign(
        "the cache lies in pages, which need no defragmentation", ("-dt", "--defrag-thold"),
        neutral=("-1",), env=("DEFRAG_THOLD",),
    ),
    Foreign("the share of a slot is that of -c and -np", ("--kv-unified-per-slot", "-kvups"),
            env=("KV_UNIFIED_PER_SLOT",)),
    Foreign(
        "there is nothing to leave out: kernels are compiled before the server listens", (),
        ("--warmup", "--no-warmup"),
    ),
    Foreign(
        "weights are always packed for the device", ("--no-repack", "-nr"), ("--repack",), TRUE,
        ("REPACK",),
    ),
    Foreign(
        "the host's memory never keeps weights from being packed", (), ("--no-host",),
        (*TRUE, *FALSE), ("NO_HOST",),
    ),
    Foreign(
        "matrices are multiplied where they lie", ("--op-offload",), ("--no-op-offload",),
    ),
    Foreign(
        "times are measured in any case, by the server", (), ("--perf", "--no-perf"),
        (*TRUE, *FALSE), ("PERF",),
    ),
    Foreign(
        "the log always has times and levels", ("--no-log-prefix", "--no-log-timestamps"),
        ("--log-prefix", "--log-timestamps"), TRUE, ("LOG_PREFIX", "LOG_TIMESTAMPS"),
    ),
    Foreign(
        "the log has no colours", ("--log-colors",), neutral=("off", "auto"), env=("LOG_COLORS",),
    ),
    Foreign(LOGGING, ("--log-disable",)),
    Foreign(
        LOGGING, ("-lv", "--verbosity", "--log-verbosity"), neutral=("3",), env=("LOG_VERBOSITY",),
    ),
    Foreign("devices of other machines cannot be used", ("--rpc",), env=("RPC",)),
    Foreign(
        "one process serves one model",
        ("--models-dir", "--models-preset", "--models-max", "--models-autoload"),
        ("--no-models-autoload",), env=("MODELS_DIR", "MODELS_PRESET"),
    ),
    Foreign("there are no built-in tools here", ("--tools", "--agent"), env=("TOOLS",)),
)  # fmt: skip
REFUSED = {flag: row for row in FOREIGN for flag in row.refused}
TAKEN = frozenset(flag for row in FOREIGN for flag in row.taken)
VARIABLES = {f"LLAMA_ARG_{name}": row for row in FOREIGN for name in row.env}


def without_foreign(args: Sequence[str], values: Mapping[str, bool]) -> list[str]:
    """The arguments without those that ask for nothing; UsageError for those that do.

    ``values``: our own options, and whether they take the next argument.
    """
    kept: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if arg == "--":
            return [*kept, arg, *rest]
        if name in REFUSED:
            row = REFUSED[name]
            is_flag = not row.neutral or row.neutral in (TRUE, FALSE)
            if is_flag or (value if equals else next(rest, None)) not in row.neutral:
                raise click.UsageError(f"{name} is not supported: {row.reason}")
        elif arg not in TAKEN:
            kept.append(arg)
            kept.extend(islice(rest, int(values.get(arg, False))))  # whatever that looks like
    return kept


def refused_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with each variable that asks for what is not there."""
    for name, row in VARIABLES.items():
        value = environ.get(name, "")
        if value and value.lower() not in row.neutral:
            yield f"{name}={value} is not supported: {row.reason}"
