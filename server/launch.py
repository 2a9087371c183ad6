"""Serving: the listener is up first, the model loads in a thread, signals end it all.

``serve`` returns the exit code: 0 after a signal, 1 when the model cannot be served.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from sse_starlette.sse import AppStatus
from starlette.types import ASGIApp

from gguf_serve.engine.child import end_all
from gguf_serve.engine.errors import EngineError, ModelError, RequestError
from gguf_serve.engine.model.wire import Wire
from gguf_serve.engine.option_values import commas
from gguf_serve.engine.options import EngineOptions
from gguf_serve.server import sockets as listeners
from gguf_serve.server.app import create_app
from gguf_serve.server.configure import (
    SettingsError,
    api_keys,
    api_prefix,
    batch_store,
    client_limits,
    cors,
    engine_options,
    key_limits,
    media_fetcher,
    request_defaults,
    response_folder,
    toolbox,
    traces,
    uses_https,
    voices,
    warmup_body,
)
from gguf_serve.server.dialects.table import error_response
from gguf_serve.server.doctor import other_commands
from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.auth import Keys
from gguf_serve.server.http.connection import protocol
from gguf_serve.server.http.connections import Limits, raise_file_limit
from gguf_serve.server.http.key_limits import Limiter
from gguf_serve.server.idle import Idle
from gguf_serve.server.interface import Engine
from gguf_serve.server.logs import set_up_logging
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.requests.service import Endpoints, Service
from gguf_serve.server.requests.warm_prompt import warm_up
from gguf_serve.server.summary import progress_bar, show, summary
from gguf_serve.server.tools.tool import Tool
from gguf_serve.server.tracing import Traces

log = logging.getLogger("gguf_serve.server")
DRAIN_STEP = 0.1  # seconds
GRACE = 3  # seconds that open answers get after a signal


class LoadStoppedError(Exception):
    """Raised out of the progress report, to end loading when the server is to stop."""


class Server(uvicorn.Server):
    """uvicorn's server around a model that comes later and may fail to."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        load: Callable[[Callable[[float], None]], Engine],
        on_loaded: Callable[[Engine], None],
        idle: Idle,
        handshake_timeout: float = 15.0,
        on_hangup: Callable[[], None] | None = None,
        drain_timeout: float = 0.0,
        traces: Traces | None = None,
    ) -> None:
        super().__init__(config)
        self.servers: list[asyncio.base_events.Server] = []
        self.handshake_timeout = handshake_timeout  # seconds, for TLS
        self.idle = idle
        self.on_hangup = on_hangup  # None: SIGHUP ends the process
        self.drain_timeout = drain_timeout  # seconds
        self.service = service
        self.failure: str | None = None
        self._traces = traces
        self._load = load
        self._on_loaded = on_loaded
        self._threads: list[threading.Thread] = []
        self._draining: asyncio.Task[None] | None = None
        self._listing: asyncio.Task[dict[str, Tool]] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but a TLS handshake has no more time than a header."""
        self._loop = loop = asyncio.get_running_loop()
        connection: Any = self.config.http_protocol_class
        make = partial(
            connection,
            config=self.config,
            server_state=self.server_state,
            app_state={},
            _loop=loop,
        )
        for listener in sockets or ():
            server = await loop.create_server(
                make,
                sock=listener,
                ssl=self.config.ssl,
                ssl_handshake_timeout=self.handshake_timeout if self.config.ssl else None,
                backlog=self.config.backlog,
            )
            self.servers.append(server)
        self.started = True
        AppStatus.should_exit = False
        self.idle.arm()
        self._spawn(self._load_model)
        if self.service.tools:  # to say in the log which there are
            self._listing = loop.create_task(self.service.tools.tools())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the engine's streams first: uvicorn waits for the answers that are open."""
        AppStatus.should_exit = True  # streams say so themselves where it is in a long step
        if self.service.batches is not None:
            self.service.batches.stop()
        engine = self.service.loaded_engine
        if engine is not None:
            self._spawn(engine.close)
        await super().shutdown(sockets)
        await self.service.tools.close()
        if self._traces is not None:
            self._traces.close()
        end_all()  # else whoever still waits for a template keeps the process alive

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A signal is a wish to end, not a failure: it is not raised again afterwards."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        if self.on_hangup is not None:
            loop.add_signal_handler(signal.SIGHUP, self.on_hangup)
        yield

    def leftover_threads(self) -> list[threading.Thread]:
        for thread in self._threads:
            thread.join(timeout=1)
        return [thread for thread in self._threads if thread.is_alive()]

    def _on_signal(self) -> None:
        """The first one may let open requests end, the next one does not, nor wait for streams."""
        if self.drain_timeout and self.server_state.tasks and not self.service.is_draining:
            self.service.is_draining = True
            log.info("ending: %d requests are open", len(self.server_state.tasks))
            self._draining = asyncio.get_running_loop().create_task(self._drain())
            return
        self.force_exit = self.should_exit
        self.should_exit = True

    async def _drain(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.drain_timeout):
                while self.server_state.tasks:
                    await asyncio.sleep(DRAIN_STEP)
        self.should_exit = True

    def _spawn(self, target: Callable[[], None]) -> None:
        # Daemons: a driver that hangs must not keep the process alive.
        thread = threading.Thread(target=target, name=target.__name__, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _load_model(self) -> None:
        try:
            engine = self._load(self._report)
            if self.service.defaults.constraint is not None:
                engine.compile(self.service.defaults.constraint)
        except LoadStoppedError:
            pass
        except (EngineError, SettingsError) as error:
            self._fail(str(error))
        except Exception as error:
            log.exception("loading failed")
            self._fail(f"loading failed: {type(error).__name__}: {error}")
        else:
            self.service.loaded_engine = engine
            if self.service.batches is not None and self._loop is not None:
                self._loop.call_soon_threadsafe(self.service.batches.start)
            self._on_loaded(engine)

    def _report(self, fraction: float) -> None:
        if self.should_exit:
            raise LoadStoppedError

    def _fail(self, message: str) -> None:
        self.failure = message
        self.should_exit = True


def serve(settings: Settings) -> int:
    set_up_logging(settings)
    hosts = settings.host
    keys = Keys(api_keys(settings))
    service = Service(
        defaults=request_defaults(settings),
        aliases=commas(settings.alias or ""),
        tags=commas(settings.tags or ""),
        ping_interval=settings.sse_ping_interval,
        max_body=settings.max_body << 20,
        max_bodies=settings.max_bodies << 20,
        max_unread=settings.max_unread << 20,
        timeout=settings.timeout,
        body_timeout=settings.body_timeout,
        endpoints=Endpoints(
            settings.slots,
            settings.props,
            settings.metrics,
            settings.slot_save_path,
            None if settings.lora_runtime is None else Path(settings.lora_runtime),
        ),
        pooling=settings.pooling,
        embd_normalize=settings.embd_normalize,
        fetcher=media_fetcher(settings),
        page=settings.ui if settings.path is None else Path(settings.path),
        isolates=settings.cache_key_isolation,
        verbose=settings.verbose,
        response_memory=settings.response_memory << 20,
        response_folder=response_folder(settings),
        batch_store=batch_store(settings),
        only_vectors=settings.embedding or settings.reranking,
        tools=toolbox(settings),
        voices=voices(settings),
        language=settings.tts_lang or "",
    )
    idle = idle_model(service, settings)
    encrypted = uses_https(settings)
    limits = connection_limits(settings)
    bound = listeners.bind(hosts, settings.port, share=settings.reuse_port)
    addresses = [listeners.address(listener, encrypted) for listener in bound]
    if not keys and any(map(listeners.is_open, bound)):
        log.warning("whoever reaches %s can use the server: there is no --api-key", addresses[0])
    limited = key_limits(settings)
    limiter = None if limited is None else Limiter(limited)
    traced = traces(settings)
    app = create_app(service, keys, cors(settings), api_prefix(settings), idle, limiter, traced)
    server = Server(
        http_config(app, settings, limits),
        service,
        load=lambda report: load_warm(settings, report),
        on_loaded=lambda engine: greet(engine, service.model_name, addresses),
        idle=idle,
        handshake_timeout=limits.header_timeout,
        on_hangup=rereading(settings, keys, limiter),
        drain_timeout=settings.drain_timeout,
        traces=traced,
    )
    try:
        server.run(bound)
    finally:
        listeners.unlink(hosts)
    return finish(server)


def greet(engine: Engine, model_name: str, addresses: Sequence[str]) -> None:
    """Say what is served, and then what takes some time to find out."""
    show(summary(engine, model_name, addresses))
    for notice in other_commands.notices():
        log.warning(notice)


def rereading(settings: Settings, keys: Keys, limiter: Limiter | None) -> Callable[[], None] | None:
    """What reads keys and limits anew; None: neither is in a file."""
    if settings.api_key_file is None and limiter is None:
        return None

    def read() -> None:
        if settings.api_key_file is not None:
            read_again("keys", lambda: keys.replace(api_keys(settings)))
        if limiter is not None:
            read_again("limits", lambda: limiter.replace(key_limits(settings)))

    return read


def read_again(what: str, read: Callable[[], None]) -> None:
    """What was there stays if it cannot be read."""
    try:
        read()
    except SettingsError as error:
        log.error("the %s stay as they were: %s", what, error)
    else:
        log.info("the %s have been read again", what)


def http_config(app: ASGIApp, settings: Settings, limits: Limits) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=protocol(error_response, limits),
        log_config=None,
        access_log=False,  # http/request_log.py has it
        lifespan="off",
        ws="none",
        server_header=False,
        # A client may write into these headers what it likes.
        proxy_headers=bool(limits.proxies),
        forwarded_allow_ips=[str(proxy) for proxy in limits.proxies],
        timeout_keep_alive=settings.idle_timeout,
        timeout_graceful_shutdown=GRACE,
        ssl_keyfile=settings.ssl_key_file,
        ssl_certfile=settings.ssl_cert_file,
    )


def connection_limits(settings: Settings) -> Limits:
    """As the options say, within the files that this process may open."""
    n_files = raise_file_limit()
    limits = client_limits(settings, n_files)
    if limits.connections < settings.max_connections:
        log.warning(
            "at most %d connections instead of %d: the process may open %d files (ulimit -n)",
            limits.connections, settings.max_connections, n_files,
        )  # fmt: skip
    return limits


def idle_model(service: Service, settings: Settings) -> Idle:
    return Idle(
        service, settings.sleep_idle_seconds, lambda: load_model(settings, lambda fraction: None)
    )


def finish(server: Server) -> int:
    code = 0
    if server.failure is not None:
        print(f"serve: {server.failure}", file=sys.stderr)
        code = 1
    if server.leftover_threads():
        # A thread inside a driver would be torn down in the middle of a call.
        sys.stderr.flush()
        os._exit(code)
    return code


def load_model(settings: Settings, report: Callable[[float], None]) -> Engine:
    """Runs in a thread of its own; `report` raises when the server is to stop."""
    path = demo_path(report) if settings.demo else Path(settings.model or "")
    options = engine_options(settings)
    engine: Engine
    if settings.pipeline > 1:
        from gguf_serve.server.pipeline.start import start_stages

        engine = load_here(path.absolute(), options, report, partial(start_stages, settings))
    elif settings.replicas is None:
        engine = load_here(path, options, report)
    else:
        from gguf_serve.server.replicas.cluster import start_replicas

        engine = start_replicas(path, options, settings, report)
    problem = unfit(settings, engine, path.name)
    if problem:
        engine.close()
        raise ModelError(problem)
    return engine


def unfit(settings: Settings, engine: Engine, name: str) -> str:
    """What an option asks for that the model of this name has not; "": nothing."""
    if settings.reranking and not engine.info.ranks:
        return f"--rerank: {name} has no head for ranking"
    speaking = {
        "--tts-speaker-file": settings.tts_speaker_file,
        "--voices": settings.voices,
        "--tts-lang": settings.tts_lang,
    }
    option = next((option for option, given in speaking.items() if given is not None), None)
    if option is None:
        return ""
    if engine.speech is None:
        return f"{option}: {name} does not speak"
    if not engine.speech.needs_voice:  # else a request that brings one finds out
        try:
            engine.speech.requests("a", language=settings.tts_lang or "")
        except RequestError as error:
            return f"--tts-lang: {error}"
    return ""


def load_here(
    path: Path,
    options: EngineOptions,
    report: Callable[[float], None],
    connect: Callable[[], Iterable[Wire]] | None = None,
) -> Engine:
    """The engine in this process. ``connect``: see load_engine."""
    from gguf_serve.engine.engine import load_engine

    with progress_bar(f"Loading {path.name}") as draw:

        def progress(fraction: float) -> None:
            report(fraction)
            draw(fraction)

        if gc.get_freeze_count():  # a model has slept: it goes before the next one comes
            gc.unfreeze()
            gc.collect()
        gc.disable()  # as cli.py says
        try:
            engine = load_engine(path, options, progress, connect)
            # Collections pass over what is there: to look through its 90,000 objects and more,
            # with every stream waiting, takes 50 to 120 ms, and finds a MiB that loading has
            # left. The first one would come as soon as they are enabled.
            gc.freeze()
        finally:
            gc.enable()
        return engine


def load_warm(settings: Settings, report: Callable[[float], None]) -> Engine:
    """As ``load_model``, and what --warmup-prompt names is computed."""
    engine = load_model(settings, report)
    warm(engine, settings)
    return engine


def warm(engine: Engine, settings: Settings) -> int:
    """Compute what conversations like --warmup-prompt begin with; how many tokens. EngineError or
    SettingsError: it cannot be."""
    body = warmup_body(settings)
    if body is None:
        return 0
    defaults, fetcher = request_defaults(settings), media_fetcher(settings)
    try:
        return warm_up(Service(engine, defaults=defaults, fetcher=fetcher), body)
    except ApiError as error:
        raise SettingsError(f"--warmup-prompt: {error.message}") from None


def demo_path(report: Callable[[float], None]) -> Path:
    from gguf_serve.server.demo import demo_model

    with progress_bar("Preparing the demonstration model") as draw:

        def progress(done: int, total: int) -> None:
            fraction = done / total if total > 0 else 0.0
            report(fraction)
            draw(fraction)

        return demo_model(progress)
