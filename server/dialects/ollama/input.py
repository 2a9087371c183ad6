"""The bodies of Ollama's chat and generate as the bodies of completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gguf_serve.server.errors import invalid, shown
from gguf_serve.server.requests.fields import (
    CacheSalt,
    SamplingFields,
    check_limits,
    check_stops,
    refuse,
)

# Fields that change no answer: Ollama's are of a model that is loaded for a request.
ALSO = frozenset({"model", "name", "options", "shift"})


# Options that Ollama's runner is started with.
AT_START = frozenset(
    ("num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock", "numa", "low_vram",
     "f16_kv", "vocab_only", "logits_all", "embedding_only", "rope_frequency_base",
     "rope_frequency_scale")
)  # fmt: skip


class Options(SamplingFields, kw_only=True):
    """What of ``options`` a request decides; the rest is decided when the server starts."""

    num_predict: int | None = None
    num_keep: int | None = None
    draft_num_predict: int | None = None
    num_ctx: int | None = None
    stop: str | list[str] | None = None
    cache_salt: CacheSalt | None = None


KNOWN_OPTIONS = frozenset(
    f"options.{name}" for name in AT_START.union(Options.__struct_encode_fields__)
)


class CommonFields(msgspec.Struct, kw_only=True):
    stream: bool = True
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | str | None = None
    keep_alive: str | int | float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    cache_salt: CacheSalt | None = None  # Ollama's clients send what they do not know in options


class ChatFields(CommonFields, kw_only=True):
    messages: list[dict[str, Any]] = []
    truncate: bool = True
    tools: list[dict[str, Any]] | None = None


class GenerateFields(CommonFields, kw_only=True):
    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    raw: bool = False
    images: list[Any] | None = None
    template: str | None = None
    context: list[int] | None = None


# Of generate: templates there are Go's. Without a template there is no conversation to go on with.
UNSUPPORTED: dict[str, tuple[object, ...]] = {"template": ("",)}
UNSUPPORTED_PLAIN = UNSUPPORTED | {"images": ([],), "context": ([],)}


def chat_body(fields: ChatFields) -> dict[str, Any]:
    names: dict[str, str] = {}  # of the calls so far, by name: the id of the latest
    messages = [
        chat_message(f"messages[{place}]", message, names)
        for place, message in enumerate(fields.messages)
    ]
    body = common(fields) | {"messages": messages}
    return body | ({"tools": fields.tools} if fields.tools else {})


def generate_body(fields: GenerateFields) -> dict[str, Any]:
    refuse(given(fields), UNSUPPORTED)
    system = [{"role": "system", "content": fields.system}] if fields.system else []
    images = fields.images
    content = with_images("images", fields.prompt, images) if images else fields.prompt
    return common(fields) | {"messages": [*system, {"role": "user", "content": content}]}


def plain_body(fields: GenerateFields) -> dict[str, Any]:
    """Of a prompt that no template is applied to."""
    refuse(given(fields), UNSUPPORTED_PLAIN)
    body = common(fields)
    return {name: body[name] for name in body if not name.startswith("chat_")} | {"prompt": ""}


def given(fields: msgspec.Struct) -> dict[str, Any]:
    return {k: v for k, v in msgspec.structs.asdict(fields).items() if v is not None}


def common(fields: CommonFields) -> dict[str, Any]:
    check_limits(fields.options)
    if fields.options is not None and isinstance(fields.options.stop, list):
        check_stops("options.stop", fields.options.stop)
    body: dict[str, Any] = given(fields.options) if fields.options else {}
    body.pop("num_ctx", None)
    for theirs, ours in (("num_predict", "n_predict"), ("num_keep", "n_keep")):
        if theirs in body:
            body[ours] = max(body.pop(theirs), -1)  # -2 fills the context: no limit, here
    if "draft_num_predict" in body:
        body["speculative.n_max"] = max(body.pop("draft_num_predict"), -1)
    body["stream"] = fields.stream
    if fields.cache_salt is not None:
        body["cache_salt"] = fields.cache_salt
    if fields.format is not None and fields.format != "":
        body["response_format"] = response_format(fields.format)
    if fields.think is not None:
        body |= thinking(fields.think)
    return body


def response_format(form: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(form, str):
        if form != "json":
            raise invalid(f"Field 'format': expected \"json\" or a JSON schema, got {shown(form)}")
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"schema": form}}


def thinking(think: bool | str) -> dict[str, Any]:
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    return {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": think}


def chat_message(name: str, message: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Results name their tool; ids, which templates may want, are those of its latest call."""
    found: dict[str, Any] = {key: message[key] for key in ("role", "content") if key in message}
    if message.get("images"):
        found["content"] = with_images(f"{name}.images", found.get("content"), message["images"])
    if message.get("thinking"):
        found["reasoning_content"] = message["thinking"]
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise invalid(f"Field '{name}.tool_calls': expected an array, got {shown(calls)}")
    if calls:
        found["tool_calls"] = [
            chat_call(f"{name}.tool_calls[{place}]", f"{name}-{place}", call, names)
            for place, call in enumerate(calls)
        ]
    tool = message.get("tool_name")
    if message.get("role") == "tool":
        found["tool_call_id"] = message.get("tool_call_id") or names.get(str(tool), "")
        if tool is not None:
            found["name"] = tool
    return found


def with_images(name: str, text: Any, images: Any) -> list[dict[str, Any]]:
    """A text after its images, which are base64; Ollama puts them in front, too."""
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise invalid(f"Field '{name}': expected an array of base64 strings")
    parts: list[dict[str, Any]] = [
        {
            "type": "image_url",
            "image_url": {"url": f"data:;base64,{image}"},
            "name": f"{name}[{place}]",
        }
        for place, image in enumerate(images)
    ]
    return [*parts, {"type": "text", "text": text or ""}]


def chat_call(name: str, made_up: str, call: Any, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(f"Field '{name}': expected a function with a name, got {shown(call)}")
    id = call.get("id") or made_up
    names[function["name"]] = id
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = msgspec.json.encode(arguments).decode()
    called = {"name": function["name"], "arguments": arguments}
    return {"id": id, "type": "function", "function": called}
