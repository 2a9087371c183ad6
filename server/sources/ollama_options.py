"""What Ollama keeps beside a model, as options of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gguf_serve.server.sources.ollama import PREFIX, OllamaModel, find, of_blob

# Ollama's parameters that are options here. Others (num_ctx, num_thread, ...) are its own way of
# using a machine.
PARAMETERS = {
    "temperature": "--temp",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "min_p": "--min-p",
    "typical_p": "--typical",
    "repeat_penalty": "--repeat-penalty",
    "repeat_last_n": "--repeat-last-n",
    "presence_penalty": "--presence-penalty",
    "frequency_penalty": "--frequency-penalty",
    "seed": "--seed",
    "num_predict": "-n",
}
# What a template in Go's language has for the turns of each format, most telling first.
MARKERS = {
    "<|im_start|>": "chatml",
    "<|start_header_id|>": "llama3",
    "<start_of_turn>": "gemma",
    "<|start_of_role|>": "granite",
    "<|START_OF_TURN_TOKEN|>": "command-r",
    "<｜User｜>": "deepseek3",
    "<|start|>": "gpt-oss",
    "<<SYS>>": "llama2-sys",
    "[SYSTEM_PROMPT]": "mistral-v7",
    "[INST]": "mistral-v3",
    "### Instruction:": "deepseek",
    "USER:": "vicuna",
}


def expanded(args: list[str]) -> list[str]:
    """A command line whose ``-m`` may name a model of Ollama's, with what belongs to it first, so
    that everything else outdoes it; SettingsError."""
    for i, arg in enumerate(args[:-1]):
        if arg in ("-m", "--model"):
            name = args[i + 1]
            model = find(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else of_file(name)
            if model is not None:
                return [*options(model), *args[:i], arg, str(model.model), *args[i + 2 :]]
    return args


def of_file(name: str) -> OllamaModel | None:
    from pathlib import Path

    return of_blob(Path(name).expanduser().absolute())


def options(model: OllamaModel) -> list[str]:
    return [
        *([] if model.projector is None else ["--mmproj", str(model.projector)]),
        *(word for path in model.adapters for word in ("--lora", str(path))),
        *parameters(model.params),
        *template(model),
    ]


def parameters(params: Mapping[str, Any]) -> Iterator[str]:
    for name, value in params.items():
        if name in PARAMETERS:
            yield from (PARAMETERS[name], str(value))
    stops = params.get("stop", [])
    for stop in [stops] if isinstance(stops, str) else stops:
        yield from ("-r", str(stop))


def template(model: OllamaModel) -> list[str]:
    """The format that its template writes, unless the file has a template of its own, in Jinja."""
    if not model.template or has_template(model):
        return []
    names = [name for marker, name in MARKERS.items() if marker in model.template]
    if "<|user|>" in model.template and not names:
        names = ["phi3" if "<|end|>" in model.template else "zephyr"]
    return ["--chat-template", names[0]] if names else []


def has_template(model: OllamaModel) -> bool:
    from gguf_serve.engine.gguf.file import open_gguf

    with open_gguf(model.model) as gguf:
        return "tokenizer.chat_template" in gguf.metadata
