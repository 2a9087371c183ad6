"""Every field that the text endpoints know acts, is refused by name, or is listed as changing
nothing.

An engine that notes what it is asked, and the answer, show that a field acts. Which fields there
are is not written here but found in the routes, as the OpenAPI document finds them.
"""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from gguf_serve.server.app import create_app
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.requests.fields import INERT
from gguf_serve.server.requests.service import Service

USER = {"role": "user", "content": "hi"}
CHAT = {"messages": [USER]}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}
GRAMMAR = {"grammar": 'root ::= "a"'}
TRIGGERS = [{"type": 1, "value": "a"}]
STREAM = {"stream": True}
BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "a"},
    "/completion": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/messages": CHAT | {"max_tokens": 99},
    "/api/chat": CHAT | {"model": "m", "stream": False},
    "/api/generate": {"prompt": "a", "model": "m", "stream": False},
}
GUESSES: tuple[Any, ...] = (True, False, 7, 0.35, "x", ["x"], [65], {"x": 1})
# Fields for which none of those will do: a value, and what has to stand beside it.
PROBES: dict[str, tuple[Any, dict[str, Any]]] = {
    "allowed_token_ids": ([65], {}),
    "continue_final_message": (False, {"messages": [USER, {"role": "assistant", "content": "I"}]}),
    "grammar_lazy": (True, GRAMMAR | {"grammar_triggers": TRIGGERS}),
    "grammar_triggers": (TRIGGERS, GRAMMAR | {"grammar_lazy": True}),
    "lora": ([{"id": 0, "scale": 0.5}], {}),
    "messages": ([{"role": "user", "content": "other"}], {}),
    "model": ("base:b", {}),
    "n": (2, {}),
    "n_cmpl": (2, {}),
    "options": ({"top_k": 3}, {}),
    "output_config": ({"format": SCHEMA}, {}),
    "output_format": (SCHEMA, {}),
    "prediction": ({"type": "content", "content": "a"}, {}),
    "preserved_tokens": (["<s>"], GRAMMAR),
    "response_format": ({"type": "json_object"}, {}),
    "return_progress": (True, STREAM),
    "stream_options": ({"include_usage": True}, STREAM),
    "structured_outputs": ({"regex": "a"}, {}),
    "timings_per_token": (True, STREAM),
    "tool_choice": ("required", {"tools": [{"type": "function", "function": FUNCTION}]}),
    "tools": ([{"type": "function", "function": FUNCTION}], {}),
    "top_logprobs": (2, {"logprobs": True}),
    "truncate_prompt_tokens": (1, {"prompt": "abc"}),
}
# The same where a dialect has another form of them.
OTHERS: dict[tuple[str, str], tuple[Any, dict[str, Any]]] = {
    ("/v1/messages", "tool_choice"): (
        {"type": "any"}, {"tools": [{"name": "f", "input_schema": {"type": "object"}}]},
    ),
    ("/v1/messages", "tools"): ([{"name": "f", "input_schema": {"type": "object"}}], {}),
    ("/v1/responses", "continue_final_message"): (
        False, {"input": [USER, {"role": "assistant", "content": "I"}]},
    ),
    ("/v1/responses", "include"): (["message.output_text.logprobs"], {}),
    ("/v1/responses", "tool_choice"): ("required", {"tools": [{"type": "function"} | FUNCTION]}),
    ("/v1/responses", "tools"): ([{"type": "function"} | FUNCTION], {}),
    ("/v1/responses", "top_logprobs"): (2, {"include": ["message.output_text.logprobs"]}),
}  # fmt: skip
# What docs/api.md lists as changing nothing, beside INERT.
IGNORED = {
    "/v1/messages": {"cache_control", "context_management", "inference_geo", "speed"},
    "/v1/responses": {"client_metadata", "max_tool_calls", "stream_options"},
    "/v1/completions": {"stream_options"},  # its streams have usage in any case
    "/completion": {"verbose", "stream_options"},  # its answer has all of both
    "/api/chat": {"shift", "name"},  # name: an older name of model
    "/api/generate": {"shift", "name"},
}
# Fields whose effect this engine, or this template, does not show; where it is shown.
SHOWN_ELSEWHERE = {
    "best_of": "test_fields.py",  # the same as n, where all answers are the best
    "conversation": "responses/test_memory.py",
    "images": "test_media.py",
    "keep_alive": "ollama/test_keep_alive.py",
    "previous_response_id": "responses/test_memory.py",
    "reasoning_budget_message": "test_chat.py",
    "reasoning_budget_tokens": "test_chat.py",
    "reasoning_control": "test_chat.py",
    "reasoning_format": "test_chat.py",
    "sse_ping_interval": "http/test_reply.py",
    "suffix": "test_infill.py",
    "thinking": "test_chat.py",
    "thinking_budget_tokens": "test_chat.py",
    "truncate": "ollama/test_endpoints.py",
    "truncate_prompt_tokens": "openai/test_vllm_fields.py",
    "truncation": "test_newest.py",
}


VOLATILE = re.compile(
    r'"(?:id|item_id|created|created_at|completed_at|[a-z_]+(?:_duration|_ms|_second))"'
    r': ?"?[^,"}]*"?|batch=\d+|0x[0-9a-f]+'
)


def ask(http: httpx.Client, engine: Any, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """The status, and what the request did: the answer, what the engine and the template got."""
    engine.requests.clear()
    engine.chat_template.calls.clear()
    answer = http.post(path, json=body)
    noted = f"{answer.text} {engine.requests} {engine.chat_template.calls}"
    return answer.status_code, VOLATILE.sub("", noted)


def effect(http: httpx.Client, engine: Any, path: str, name: str) -> str:
    """What a field does: ``acts``, ``refused``, or ``nothing``."""
    has_probe = (path, name) in OTHERS or name in PROBES
    value, beside = OTHERS.get((path, name)) or PROBES.get(name, (None, {}))
    base = BASES[path] | beside
    _, before = ask(http, engine, path, base)
    for guess in (value,) if has_probe else GUESSES:
        status, noted = ask(http, engine, path, base | {name: guess})
        if status == 200 and noted != before:
            return "acts"
        if status == 400 and f"Field '{name}': " in noted and "not supported by this" in noted:
            return "refused"
    return "nothing"


@pytest.mark.parametrize("path", BASES)
def test_every_field(serve: Any, fakes: Any, path: str) -> None:
    engine = fakes.engine()
    routes: Any = create_app(Service(engine)).routes
    (route,) = [each for each in routes if isinstance(each, Post) and each.path == path]
    known = set(route.known or ()) - set(SHOWN_ELSEWHERE)
    with httpx.Client(base_url=serve(engine)) as http:
        ask(http, engine, path, BASES[path])  # the template tells of itself once
        silent = {name for name in known if effect(http, engine, path, name) == "nothing"}
    assert sorted(silent - INERT - IGNORED.get(path, set())) == []
