"""A scripted engine over bytes, and the app behind a real HTTP server on a loopback port."""

from __future__ import annotations

import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from msgspec.structs import replace

from gguf_serve.engine.chat.prompt import Conversation, Prompt, write_prompt
from gguf_serve.engine.errors import (
    ContextOverflowError,
    EngineStoppedError,
    MediaError,
    RequestError,
    TooManyTokensError,
)
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.options import AdapterState
from gguf_serve.engine.request import (
    Delta,
    Event,
    Failed,
    Finished,
    PromptScored,
    Request,
    Scoring,
    Sound,
    Speaking,
    Started,
    Timings,
    TokenScore,
)
from gguf_serve.engine.stats import EngineStats, SlotState
from gguf_serve.engine.text.vocab import FimTokens
from gguf_serve.server.app import Cors, create_app
from gguf_serve.server.dialects.table import error_response
from gguf_serve.server.http.auth import Keys
from gguf_serve.server.http.connection import protocol
from gguf_serve.server.http.connections import Limits
from gguf_serve.server.http.key_limits import Limiter
from gguf_serve.server.idle import Idle
from gguf_serve.server.options.request_defaults import Defaults
from gguf_serve.server.requests.service import Service

MCP_SERVER = Path(__file__).resolve().parents[1] / "data" / "mcp_server.py"
BOS, EOS, N_VOCAB = 256, 257, 258


class ByteTokenizer:
    """A token for each byte, BOS and EOS."""

    n_vocab, bos_id, eos_id = N_VOCAB, BOS, EOS
    eog_ids = frozenset({EOS})
    fim = FimTokens()

    def encode(
        self,
        text: str,
        add_special: bool = True,
        parse_special: bool = True,
        most: int | None = None,
    ) -> list[int]:
        ids = [BOS] if add_special else []
        for number, part in enumerate(text.split("<s>") if parse_special else [text]):
            ids += ([BOS] if number else []) + list(part.encode())
        if most is not None and len(ids) > max(most, 2**15):
            raise TooManyTokensError(most + 1, most)
        return ids

    def first(self, text: str, n: int) -> list[int]:
        return self.encode(text)[:n]

    def encode_pairs(self, first: str, seconds: Sequence[str], most: int) -> list[list[int]]:
        return [[BOS, *first.encode(), EOS, *second.encode()] for second in seconds]

    def token_of(self, text: str) -> int | None:
        return ord(text) if len(text) == 1 and text.isascii() else None

    def piece(self, id: int, special: bool = True) -> bytes:
        if id < BOS:
            return bytes([id])
        return (b"<s>" if id == BOS else b"</s>") if special else b""

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        return b"".join(self.piece(id, special) for id in ids).decode("utf-8", "replace")


class LineTemplate:
    """<s>role: content, a line for each message."""

    source = "{{ lines }}"
    caps = SimpleNamespace(
        as_props=lambda: {"supports_tools": True}, supports_parallel_tool_calls=True
    )

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def asked(self) -> dict[str, Any]:
        """How the last prompt was rendered; what follows it asks for parts of it only."""
        call, self.calls = self.calls[0], []
        return call

    def for_tools(self, has_tools: bool) -> LineTemplate:
        return self

    def prompt(self, conversation: Conversation) -> Prompt:
        return write_prompt(self.render, conversation)

    def render(self, messages: Any, **how: Any) -> str:
        self.calls.append({"messages": messages, **how})
        lines = [f"{message['role']}: {message.get('content')}" for message in messages]
        if how["add_generation_prompt"]:
            lines.append("assistant:")
        return "<s>" + "\n".join(lines)


@dataclass(frozen=True)
class Info:
    path: Path = Path("/models/tiny.Q8_0.gguf")
    name: str = "Tiny"
    architecture: str = "llama"
    size_label: str = "1M"
    n_params: int = 1_230_000
    n_bytes: int = 2_000_000
    file_type: str = "Q8_0"
    tensor_types: dict[str, int] = field(default_factory=lambda: {"Q8_0": 7, "F32": 3})
    n_ctx_train: int = 512
    n_vocab: int = N_VOCAB
    n_embd: int = 64
    vocab_type: int = 2
    device_name: str = "Fake device"
    driver: str = "fake 1.0"
    kv_bytes: int = 1_048_576
    pooling: str = "none"
    is_encoder: bool = False
    denoising: Any = None
    ranks: bool = False
    rerank_template: str = ""


Script = Callable[[Request, threading.Event], Iterator[Event]]


def score(id: int, n_top: int) -> TokenScore:
    """The token is the second likeliest; the likeliest is the next byte."""
    piece, other = bytes([id]), (id + 1) % 256
    top = ((other, bytes([other]), -0.5), (id, piece, -1.0), (65, b"A", -float("inf")))
    return TokenScore(id, piece, -1.0, top[:n_top])


def say(text: str, reason: str = "eos", pause: float = 0.0) -> Script:
    """Generates the text byte by byte, or as much of it as max_tokens allows."""

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield Started(len(request.prompt), 2, 0)
        if isinstance(request.wants, Scoring):
            scored = [score(id, request.wants.n_top) for id in request.prompt[1:]]
            yield PromptScored((None, *scored))
        data = text.encode()
        limited = 0 <= request.max_tokens < len(data)
        data = data[: request.max_tokens] if limited else data
        held = b""
        for byte in data:
            if cancelled.wait(pause) if pause else cancelled.is_set():
                yield Finished("cancelled", Timings())
                return
            held += bytes([byte])
            shown = held.decode("utf-8", "ignore")
            held = b"" if shown else held
            scores = (score(byte, request.n_probs),) if request.n_probs else ()
            yield Delta(shown, (byte,), scores)
        timings = Timings(2, len(request.prompt) - 2, 10.0, len(data), 100.0)
        yield Finished("limit" if limited else reason, timings)  # type: ignore[arg-type]

    return script


class FakeSpeech:
    """A request for each sentence, a token for each byte of it; of a voice and a language first
    their lengths."""

    rate = 24000

    def __init__(self, languages: Sequence[str] = (), needs_voice: bool = False) -> None:
        self.languages, self.needs_voice = tuple(languages), needs_voice
        self.asked: list[tuple[str, bytes | None, str]] = []

    def requests(
        self, text: str, *, voice: bytes | None = None, language: str = ""
    ) -> tuple[Request, ...]:
        self.asked.append((text, voice, language))
        if language and language not in self.languages:
            raise RequestError(f"language {language!r} is not known")
        if voice is not None and not voice.startswith(b"RIFF"):
            raise MediaError("the sound cannot be decoded: no WAV")
        parts = [part for part in text.split(".") if part.strip()]
        return tuple(Request(tuple(part.encode()), wants=Speaking(len(part))) for part in parts)


FRAME = 960  # samples of FakeSpeech's: 40 ms


def speak(pause: float = 0.0, fault: str = "", n_before: int = 10**9) -> Script:
    """A frame for each token of the prompt, whose samples are all the token times 100, or as many
    as max_tokens allows; with a ``fault`` that many, and then it."""

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield Started(len(request.prompt), 0, 0)
        limited = 0 <= request.max_tokens < len(request.prompt)
        frames = request.prompt[: request.max_tokens] if limited else request.prompt
        for i, token in enumerate(frames):
            if cancelled.wait(pause) if pause else cancelled.is_set():
                yield Finished("cancelled", Timings())
                return
            if fault and i == n_before:
                yield Failed(fault)
                return
            yield Sound(struct.pack("<h", 100 * token) * FRAME)
        timings = Timings(0, len(request.prompt), 10.0, len(frames), 100.0)
        yield Finished("limit" if limited else "eos", timings)

    return script


class FakeEngine:
    """Plays a script for each request, in a thread of the request."""

    def __init__(self, script: Script | None = None, n_ctx: int = 1000, n_slots: int = 4) -> None:
        self.script = script or say("Hello wörld")
        self.n_ctx, self.n_slots = n_ctx, n_slots
        self.info = Info()
        self.tokenizer = ByteTokenizer()
        self.chat_template = LineTemplate()
        self.media: Any = None
        self.speech: Any = None
        self.healthy, self.fault = True, ""
        self.requests: list[Request] = []
        self.compiled: list[Constraint] = []
        self.loaded = [
            AdapterState(i, Path(f"{name}.gguf"), 1.0, name=name) for i, name in enumerate("ab")
        ]
        self.cancelled: list[tuple[int, float]] = []  # (number of the request, when)
        self._tickets: list[tuple[threading.Event, threading.Thread]] = []
        self._starting = threading.Lock()  # closing may come while a batch still submits

    def compile(self, constraint: Constraint) -> None:
        """What begins with a parenthesis is malformed."""
        if constraint.text.startswith("("):
            raise RequestError(f"invalid grammar: {constraint.text}")
        self.compiled.append(constraint)

    def adapters(self) -> Sequence[AdapterState]:
        return self.loaded

    def set_adapters(self, scales: Iterable[tuple[int, float]]) -> None:
        found = dict(scales)
        if set(found) - {adapter.id for adapter in self.loaded}:
            raise RequestError(f"there is no LoRA adapter {max(found)}")
        self.loaded = [replace(a, scale=found.get(a.id, 0.0)) for a in self.loaded]

    def load_adapter(self, path: Path, name: str, replaces: int | None = None) -> AdapterState:
        added = AdapterState(max(a.id for a in self.loaded) + 1, path, 0.0, name=name)
        self.loaded = [*(a for a in self.loaded if a.id != replaces), added]
        return added

    def unload_adapter(self, id: int) -> None:
        self.loaded = [a for a in self.loaded if a.id != id]

    def submit(self, request: Request, on_event: Callable[[Event], None]) -> int:
        if len(request.prompt) >= self.n_ctx + (not request.has_text):
            raise ContextOverflowError(len(request.prompt), self.n_ctx)
        cancelled = threading.Event()

        def play() -> None:
            for event in self.script(request, cancelled):
                on_event(event)

        thread = threading.Thread(target=play, daemon=True)
        with self._starting:
            if not self.healthy:
                raise EngineStoppedError("the engine has stopped")
            self._tickets.append((cancelled, thread))
            self.requests.append(request)
            thread.start()
            return len(self._tickets) - 1

    def end_reasoning(self, ticket: int) -> None: ...

    def slots(self) -> list[SlotState]:
        return [SlotState(id=i, n_ctx=self.n_ctx, is_processing=False) for i in range(self.n_slots)]

    def cancel(self, ticket: int) -> None:
        self.cancelled.append((ticket, time.monotonic()))
        self._tickets[ticket][0].set()

    def close(self) -> None:
        with self._starting:
            self.healthy = False
        for cancelled, thread in self._tickets:
            cancelled.set()
            thread.join()

    def release(self) -> None:
        self.close()

    @property
    def n_running(self) -> int:
        return sum(thread.is_alive() for _, thread in self._tickets)


# ChatML with tool calls as Hermes models write them.
HERMES = (
    "{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>"
    "{% endfor %}<|im_end|>{% endfor %}"
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>"
    'For each function call return {"name": ..., "arguments": ...} within'
    " <tool_call></tool_call>{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)


@dataclass
class Fakes:
    """What tests build engines of."""

    engine = FakeEngine
    say = staticmethod(say)
    speech = FakeSpeech
    speak = staticmethod(speak)
    score = staticmethod(score)
    failed = Failed
    fim = FimTokens
    info = Info()
    stats = EngineStats(
        n_prompt_tokens=100, prompt_seconds=2.0, n_generated_tokens=30, generation_seconds=3.0,
        n_decodes=40, n_busy_slots=60, n_tokens_max=70, n_processing=1, n_deferred=2, n_slots=4,
        n_preempted=5, n_cached_tokens=11, page_size=32, n_pages=10, n_pages_used=5,
        n_pages_cached=2,
    )  # fmt: skip
    tokenizer = ByteTokenizer()
    hermes = HERMES


@pytest.fixture
def defaults() -> type[Defaults]:
    return Defaults


@pytest.fixture
def fakes() -> type[Fakes]:
    return Fakes


Serve = Callable[..., str]


@pytest.fixture(scope="session", autouse=True)
def patient_clients() -> Iterator[None]:
    """httpx gives up after 5 s, in which a busy machine may have answered nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "read", "write", "pool"):
            patch.setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, name, 60.0)
        yield


@pytest.fixture(scope="session")
def ending() -> Iterator[list[threading.Thread]]:
    """Servers that have been told to end, which uvicorn takes 0.2 s of waiting for: time that the
    next test has."""
    threads: list[threading.Thread] = []
    yield threads
    for thread in threads:
        thread.join(timeout=5)


@pytest.fixture
def serve(ending: list[threading.Thread]) -> Iterator[Serve]:
    """Call with an engine (None: still loading) and the Service's options; gives the URL."""
    running: list[tuple[uvicorn.Server, threading.Thread, Any]] = []

    def run(
        engine: Any,
        *,
        api_keys: Sequence[str] = (),
        cors: Cors | None = None,
        prefix: str = "",
        limits: Limits | None = None,
        sleep: tuple[float, Callable[[], Any]] | None = None,  # seconds, and what loads again
        limiter: Limiter | None = None,
        traces: Any = None,
        **options: Any,
    ) -> str:
        service = Service(engine, **options)

        class Server(uvicorn.Server):
            async def shutdown(self, sockets: Any = None) -> None:
                await super().shutdown(sockets)
                await service.tools.close()

        idle = None if sleep is None else Idle(service, *sleep)
        app = create_app(service, Keys(api_keys), cors, prefix, idle, limiter, traces)
        config = uvicorn.Config(
            app,
            http=protocol(error_response, limits),
            port=0,
            log_level="error",
            lifespan="off",
            ws="none",
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
        server = Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.002)
        running.append((server, thread, engine))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield run
    for server, thread, engine in running:
        server.should_exit = True
        if engine is not None:
            engine.close()
        ending.append(thread)


@pytest.fixture(scope="session")
def mcp_program() -> Path:
    """An MCP server, to be run by this Python."""
    return MCP_SERVER


@pytest.fixture(scope="session")
def mcp_url() -> Iterator[str]:
    """The URL of one that runs."""
    command = [sys.executable, str(MCP_SERVER), "http"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
        process.kill()


@pytest.fixture
def client() -> Iterator[Callable[..., openai.OpenAI]]:
    """An OpenAI client for a URL, without retries."""
    clients: list[openai.OpenAI] = []

    def make(url: str, api_key: str = "none") -> openai.OpenAI:
        made = openai.OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0, timeout=60)
        clients.append(made)
        return made

    yield make
    for made in clients:
        made.close()
