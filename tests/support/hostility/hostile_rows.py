"""What is done to a server in test_hostile.py: the table that grows.

A new attack is a new ``Row``; rows of a few seconds run daily, the others with ``-m slow``.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hostile import KEYS, Row, Send, Server

MB = 10**6
ENGLISH = (
    "The quick brown fox jumps over the lazy dog, and 3,141 more of them (says the paper) would;\n"
)


def text(part: str, n: int) -> str:
    """About so many characters."""
    return part * (n // len(part))


def field(name: str, part: str, n: int, **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {name: text(part, n), **more}


def said(part: str, n: int, **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: (
        {"messages": [{"role": "user", "content": text(part, n)}], "max_tokens": 4} | more
    )


def completion(**fields: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"prompt": "Hello", "n_predict": 4} | fields


def everywhere(part: str, n: int) -> tuple[Send, ...]:
    """A long text to every endpoint that tokenizes one."""
    prompts = ("/completion", "/v1/completions", "/api/generate")
    infill = {"input_prefix": text(part, n // 2), "input_suffix": text(part, n // 2)}
    return (
        *(Send(path, field("prompt", part, n, raw=True)) for path in prompts),
        *(Send(path, said(part, n)) for path in ("/v1/chat/completions", "/v1/messages")),
        Send("/api/chat", said(part, n)),
        Send("/v1/responses", field("input", part, n)),
        Send("/v1/embeddings", field("input", part, n)),
        Send("/infill", lambda: infill, (400, 501)),
        Send("/v1/messages/count_tokens", said(part, n), (200, 400)),
        Send("/apply-template", said(part, n), (200, 400)),
        Send("/tokenize", field("content", part, n), (200, 400)),
        Send("/tokenize", field("content", part, n, with_pieces=True), (200, 400)),
        Send("/completion", completion(logit_bias=[[text(part, n), 1.0]])),
    )


EXTREMES = (
    {"repeat_penalty": 5e-324},
    {"frequency_penalty": -1e308},
    {"presence_penalty": 1e308},
    {"dynatemp_range": 1e308},
    {"mirostat": 2, "mirostat_tau": 1e308},
    {"dry_multiplier": -1e308},
)
DEFINED = (
    {"temperature": 5e-324},
    {"logit_bias": [[5, 1e308], [5, 1e308]]},
    {"top_n_sigma": 1e9, "temperature": 1e9},
)


def header_bomb(server: Server) -> None:
    """190 MB of small headers, before a key is looked at."""
    raw(server, b"GET /props HTTP/1.1\r\nHost: x\r\n", b"X-A: " + b"a" * 94 + b"\r\n", 1_900_000)


def endless_header(server: Server) -> None:
    raw(server, b"GET /props HTTP/1.1\r\nHost: x\r\nX-A: ", b"a" * 2**16, 3_000)


def raw(server: Server, head: bytes, part: bytes, times: int) -> None:
    block = part * max(2**16 // len(part), 1)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        try:
            connection.sendall(head)
            for _ in range(times * len(part) // len(block)):
                connection.sendall(block)
        except OSError:
            pass  # the server has had enough


def idle_connections(server: Server) -> None:
    open_ones = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    time.sleep(1)
    for connection in open_ones:
        connection.close()


def leaving(server: Server) -> None:
    """A batch whose client goes away in its middle."""
    body = json.dumps({"prompt": [f"{n} is" for n in range(2048)], "n_predict": 64}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEYS['hostile']}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        time.sleep(6)


def slow_grammars(server: Server) -> None:
    """As many as there are primes, at once; their client leaves before they are compiled."""
    with ThreadPoolExecutor(len(PRIMES)) as clients:
        for prime in PRIMES:
            schema = {"type": "integer", "multipleOf": prime}
            send = Send("/completion", completion(json_schema=schema), (), patience=6.0)
            clients.submit(server.post, send)


def asked(content: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"messages": [{"role": "user", "content": content}], "max_tokens": 4}


IMAGE = "data:image/png;base64,"
# Its first message says what it does: multiply a text, compare nested lists, or take long.
TEMPLATE = (
    "{% set asked = messages[0].content %}"
    '{% if asked == "multiply" %}{{ ("{0:999999}" * 100000).format(1) }}{% endif %}'
    '{% if asked == "compare" %}{% set n = namespace(a=[1], b=[1]) %}{% for i in range(40) %}'
    "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a is eq n.b }}{% endif %}"
    '{% if asked == "slow" %}{% for i in range(9999) %}{% for j in range(9999) %}'
    "{% endfor %}{% endfor %}{% endif %}{{ asked }}"
)
WITH_TEMPLATE = ("--jinja", "--chat-template", TEMPLATE)
AMBIGUOUS = 'root ::= a\na ::= a a | "a" | "b" | [a-z] | ""'
PRIMES = (999983, 999979, 999961, 999959, 999953, 999931, 999917, 999907)

ROWS = (
    # Long texts
    Row("tokenize 4 MB of digits", (Send("/tokenize", field("content", "7", 4 * MB)),)),
    Row("a prompt of 4 MB of digits", (Send("/completion", field("prompt", "7", 4 * MB)),)),
    Row("a prompt of 20 MB of one letter", (Send("/completion", field("prompt", "a", 20 * MB)),)),
    Row("tokenize 20 MB of spaces", (Send("/tokenize", field("content", " ", 20 * MB)),)),
    Row(
        "tokenize 1 MB of English",
        (Send("/tokenize", field("content", ENGLISH, MB, with_pieces=True), (200,)),),
    ),
    Row("3 MB of English everywhere", everywhere(ENGLISH, 3 * MB), slow=True),
    Row("20 MB of digits everywhere", everywhere("7", 20 * MB), slow=True),
    Row("20 MB of one letter everywhere", everywhere("a", 20 * MB), slow=True),
    Row("20 MB of spaces everywhere", everywhere(" ", 20 * MB), slow=True),
    Row("9 MB of control tokens everywhere", everywhere("<|endoftext|>", 9 * MB), slow=True),
    Row(
        "6 long texts at once",
        (Send("/tokenize", field("content", ENGLISH, 2 * MB), (200, 400), times=6),),
        slow=True,
        probe=10.0,
    ),
    Row(
        "a long text, compressed",
        (Send("/tokenize", lambda: gzip.compress(b'{"content": "' + b"7" * 60 * MB + b'"}')),),
        slow=True,
    ),
    # Bodies as large as they may be
    Row(
        "60 MB of English in a body",
        (Send("/v1/chat/completions", said(ENGLISH, 60 * MB)),),
        slow=True,
    ),
    Row(
        "60 MB of an image in a body",
        (
            Send(
                "/v1/chat/completions",
                asked([{"type": "image_url", "image_url": {"url": IMAGE + "A" * (60 * MB)}}]),
                (400, 500, 501),
            ),
        ),
        slow=True,
    ),
    # What the page asks of the server
    Row(
        "Markdown that takes long",
        tuple(
            Send("/page/html", field("text", part, 2**19), (200, 400))
            for part in ("[", "`" * 3 + "c\n(")
        ),
    ),
    Row(
        "more Markdown that takes long",
        tuple(
            Send("/page/html", field("text", part, 2**19), (200, 400))
            for part in ("*a **a ", "$", "| a ")
        ),
        slow=True,
    ),
    Row("a PDF that is none", (Send("/page/text", lambda: b"%PDF-1.7\n" + b"0 0 obj<<" * MB),)),
    # Tokens
    Row("detokenize 2 M tokens", (Send("/detokenize", lambda: {"tokens": [300] * (2 * MB)}),)),
    Row("detokenize 1 M tokens", (Send("/detokenize", lambda: {"tokens": [300] * MB}, (200,)),)),
    Row("a prompt of 2 M tokens", (Send("/completion", lambda: {"prompt": [300] * (2 * MB)}),)),
    Row(
        "30 M numbers",
        (Send("/completion", lambda: b'{"prompt": [' + b"1," * (30 * MB) + b"1]}", (413,)),),
    ),
    # Log-probabilities
    Row("n_probs of all tokens", (Send("/completion", completion(n_probs=20000)),)),
    Row(
        "the most n_probs",
        (Send("/completion", completion(n_probs=1024, n_predict=100), (200,), times=3),),
    ),
    Row(
        "the most scores of a prompt",
        (
            Send(
                "/v1/completions",
                lambda: {
                    "prompt": [300 + n for n in range(250)],
                    "echo": True,
                    "logprobs": 1024,
                    "max_tokens": 1,
                },
                (200,),
            ),
            Send(
                "/v1/completions",
                lambda: {
                    "prompt": [300 + n for n in range(4000)],
                    "echo": True,
                    "logprobs": 64,
                    "max_tokens": 1,
                    "stream": True,
                },
                (200,),
            ),
        ),
    ),
    Row(
        "too many scores of a prompt",
        (
            Send(
                "/v1/completions",
                lambda: {"prompt": [300] * 4000, "echo": True, "logprobs": 1000, "max_tokens": 1},
            ),
        ),
    ),
    # The queue
    Row("a batch of 2,048 prompts", leaving, probe=5.0),
    # Numbers
    Row(
        "sampling parameters beyond their ranges",
        (
            *(Send("/completion", completion(**fields)) for fields in EXTREMES),
            *(Send("/completion", completion(**fields), (200,)) for fields in DEFINED),
            *(Send("/v1/chat/completions", said("Hi", 2, **fields)) for fields in EXTREMES[:3]),
            *(
                Send("/api/chat", said("Hi", 2, stream=False, options=fields))
                for fields in EXTREMES[:3]
            ),
        ),
    ),
    # Connections and headers
    Row("190 MB of headers", header_bomb, slow=True),
    Row("an endless header", endless_header),
    Row("300 idle connections", idle_connections),
    Row(
        "a data URL of 8 million marks",
        (
            Send(
                "/v1/chat/completions",
                asked([{"type": "image_url", "image_url": {"url": "data:" + ";" * (8 * MB)}}]),
            ),
        ),
    ),
    # Schemas, grammars
    Row(
        "a client's slow grammars, another's quick one",
        slow_grammars,
        slow=True,
        probe=2.0,
        asked=Send("/completion", completion(json_schema={"type": "boolean"}), (200,)),
    ),
    Row(
        "schemas with large automata",
        tuple(
            Send(
                "/completion",
                completion(json_schema={"type": "integer", "multipleOf": prime}),
                (200, 400),
            )
            for prime in PRIMES
        ),
        slow=True,
    ),
    Row(
        "an ambiguous grammar",
        (Send("/completion", completion(grammar=AMBIGUOUS, n_predict=400), (200, 400)),),
    ),
    # Templates, of a server that has one
    Row(
        "a template that multiplies a text",
        (Send("/v1/chat/completions", asked("multiply"), (400, 500)),),
        args=WITH_TEMPLATE,
    ),
    Row(
        "a template that compares nested lists",
        (Send("/v1/chat/completions", asked("compare"), (400, 500)),),
        args=WITH_TEMPLATE,
    ),
    Row(
        "a client's slow templates, another's quick one",
        (Send("/v1/chat/completions", asked("slow"), (), patience=6.0, times=8),),
        args=WITH_TEMPLATE,
        slow=True,
        probe=2.0,
        asked=Send("/v1/chat/completions", asked("Hi"), (200,)),
    ),
)
