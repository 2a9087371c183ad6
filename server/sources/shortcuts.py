"""Options that stand for several others, as llama-server has them."""

from __future__ import annotations

from collections.abc import Iterable

_BATCH = "-b 1024 -ub 1024 -c 0 --port 8012"
_GPT_OSS = (
    "--port 8013 -ub 2048 -b 32768 -np 2 -c 262144 --temp 1.0 --top-p 1.0 --top-k 0 --min-p 0.01"
)


def _coder(size: str) -> str:
    name = f"Qwen2.5-Coder-{size}-Q8_0"
    return f"-hf ggml-org/{name}-GGUF -hff {name.lower()}.gguf {_BATCH}"


SHORTCUTS: dict[str, str] = {
    "--embd-gemma-default": "-hf ggml-org/embeddinggemma-300M-qat-q4_0-GGUF "
    "-hff embeddinggemma-300M-qat-Q4_0.gguf --port 8011 -ub 2048 -b 2048 -np 32 -c 65536",
    "--fim-qwen-1.5b-default": _coder("1.5B"),
    "--fim-qwen-3b-default": _coder("3B"),
    "--fim-qwen-7b-default": _coder("7B"),
    # Their drafts are left out until drafts are there: the same text, token by token.
    "--fim-qwen-7b-spec": _coder("7B"),
    "--fim-qwen-14b-spec": _coder("14B"),
    "--fim-qwen-30b-default": "-hf ggml-org/Qwen3-Coder-30B-A3B-Instruct-Q8_0-GGUF "
    f"-hff qwen3-coder-30b-a3b-instruct-q8_0.gguf {_BATCH}",
    "--gpt-oss-20b-default": "-hf ggml-org/gpt-oss-20b-GGUF "
    f"-hff gpt-oss-20b-mxfp4.gguf {_GPT_OSS}",
    "--gpt-oss-120b-default": f"-hf ggml-org/gpt-oss-120b-GGUF {_GPT_OSS}",
    "--vision-gemma-4b-default": "-hf ggml-org/gemma-3-4b-it-qat-GGUF -c 0 --port 8014",
    "--vision-gemma-12b-default": "-hf ggml-org/gemma-3-12b-it-qat-GGUF -c 0 --port 8014",
}
# What --demo has where nothing else is said, by the names of options. Its model is so small that
# rounding to 8 bits shows, and fast without that. Temperature and top-p are those of its card, with
# which it is often caught in a loop unless words that it repeats count less.
DEMO = {
    "engine__activation_type": "int16",
    "defaults__sampling__temperature": 0.2,
    "defaults__sampling__top_p": 0.9,
    "defaults__sampling__repeat_penalty": 1.1,
}


def expanded(args: Iterable[str]) -> list[str]:
    """A command line with what its shortcuts stand for, before all that is said by itself."""
    args = list(args)
    found = [SHORTCUTS[arg] for arg in args if arg in SHORTCUTS]
    return [*" ".join(found).split(), *(arg for arg in args if arg not in SHORTCUTS)]
