"""What a client may take before its request is looked at: headers, connections, time."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
from listening import free_port, wait_until_up

from gguf_serve.engine.request import Delta, Event, Finished, Started, Timings
from gguf_serve.server.configure import SettingsError, client_limits
from gguf_serve.server.http.connections import Connections, Limits, room_for_connections
from gguf_serve.server.options.settings import Settings

HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
STREAM = {"prompt": "x", "stream": True}


@contextmanager
def connected(url: str, timeout: float = 30.0) -> Iterator[socket.socket]:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(2**16):
        parts.append(part)
    return b"".join(parts)


def told(answer: bytes) -> tuple[int, str]:
    """Status and message of an error as it comes over the wire."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]["message"]


def post(path: str, body: dict[str, Any], version: str = "1.1") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/{version}\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


@pytest.mark.parametrize(
    ("start", "data", "expected"),
    [
        (b"GET / HTTP/1.1\r\na: ", b"b" * 5000, (431, "The header is longer than 4096 bytes")),
        (
            b"GET / HTTP/1.1\r\n",
            (b"a: " + b"b" * 200 + b"\r\n") * 25,
            (431, "The header is longer than 4096 bytes"),
        ),
        (b"GET / HTTP/1.1\r\n", b"a:\r\n" * 32, (431, "The request has more than 30 headers")),
        (b"GET /", b"b" * 3000, (414, "The request line is longer than 2048 bytes")),
        (
            b"GET / HTTP/1.1\r\n" + b"a" * 4000,
            b"",
            (408, "The header did not arrive within 1"),
        ),
        (b"\0\1\2", b"", (400, "Invalid HTTP request received.")),
    ],
)
def test_headers(serve: Any, fakes: Any, start: bytes, data: bytes, expected: Any) -> None:
    seconds = 1 if expected[0] == 408 else 15
    limits = Limits(header=4096, header_count=30, request_line=2048, header_timeout=seconds)
    url = serve(fakes.engine(), limits=limits)
    with connected(url) as connection:
        connection.sendall(start + data)
        status, message = told(read_all(connection))
    assert status == expected[0]
    assert message.startswith(expected[1])


def test_an_endless_header_ends(serve: Any, fakes: Any) -> None:
    """In pieces, so that the parser joins them, and only the sum says how long it is."""
    url = serve(fakes.engine())
    with connected(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(80):
            connection.sendall(b"y" * 1000)
            time.sleep(0.001)
        assert told(read_all(connection))[0] == 431


def test_headers_that_are_just_short_enough(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine())
    headers = {f"x-{number}": "y" * 600 for number in range(90)}
    assert httpx.get(url + "/health", headers=headers).status_code == 200
    assert httpx.get(url + "/health", params={"q": "y" * 15_000}).status_code == 200


def test_trailers_are_dropped(serve: Any, fakes: Any) -> None:
    """They would be headers of a request whose headers have been looked at."""
    url = serve(fakes.engine(), api_keys=["k"])
    chunked = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with connected(url) as connection:
        connection.sendall(chunked + b"2\r\n{}\r\n0\r\nauthorization: Bearer k\r\n\r\n")
        assert connection.recv(2**16).split()[1] == b"401"


def test_a_malformed_body_is_answered_once(serve: Any, fakes: Any) -> None:
    """With 401 if that has been said before the body came, with 400 while it is waited for."""
    url = serve(fakes.engine(), api_keys=["k"])
    for key, status in ((b"no", 401), (b"k", 400)):
        head = b"POST /tokenize HTTP/1.1\r\nhost: x\r\nx-api-key: " + key
        with connected(url) as connection:
            connection.sendall(head + b"\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n")
            select.select([connection], [], [], 10 if status == 401 else 0.1)
            connection.sendall(b"zz\r\n")
            answer = read_all(connection)
        assert (answer.count(b"HTTP/1.1 "), answer[9:12]) == (1, b"%d" % status)


@pytest.mark.parametrize("rest", [b"0\r\na: ", b"0\r\n", b"2;"])
def test_what_is_no_body_ends(serve: Any, fakes: Any, rest: bytes) -> None:
    """Trailers, and extensions of chunks: the parser would join a long one without end."""
    chunked = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    with connected(serve(fakes.engine())) as connection:
        connection.sendall(chunked + rest)
        for _ in range(80):
            connection.sendall(b"a: b\r\n" * 200 if rest == b"0\r\n" else b"b" * 1000)
            time.sleep(0.001)
        status, message = told(read_all(connection))
    assert (status, "longer than 65536 bytes" in message) == (431, True)


@pytest.mark.parametrize("begin", [b"", b"\r\n"])
def test_connections_that_send_nothing_are_closed(serve: Any, fakes: Any, begin: bytes) -> None:
    url = serve(fakes.engine(), limits=Limits(header_timeout=1, idle_timeout=1))
    with connected(url) as old, connected(url) as new:
        old.sendall(HEALTH)
        assert old.recv(2**16).startswith(b"HTTP/1.1 200")
        with suppress(ConnectionError):  # it may be closed already
            old.sendall(begin)
            assert read_all(old) == b""
        assert read_all(new) == b""


def test_idle_connections_make_room_for_new_ones(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), limits=Limits(connections=8))
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(url)) for _ in range(20)]
        assert httpx.get(url + "/health").status_code == 200
        assert read_all(idle[0]) == b""  # the first is the first to go
        idle[-1].sendall(HEALTH)
        assert idle[-1].recv(2**16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("limits", [Limits(connections=2), Limits(per_address=2)])
def test_busy_connections_stay(serve: Any, fakes: Any, limits: Limits) -> None:
    """Those above the limit are told so; /health answers all the same."""
    engine = fakes.engine(fakes.say("x" * 1000, pause=0.02))
    url = serve(engine, limits=limits)
    with ExitStack() as stack:
        for _ in range(2):
            busy = stack.enter_context(connected(url))
            busy.sendall(post("/v1/completions", STREAM))
            assert busy.recv(100).startswith(b"HTTP/1.1 200")
        refused = httpx.get(url + "/v1/models")
        assert refused.status_code == 503
        assert "No room: there are 2 connections" in refused.json()["error"]["message"]
        assert httpx.get(url + "/health").status_code == 200
        assert busy.recv(100)
    deadline = time.monotonic() + 20
    while httpx.get(url + "/v1/models").status_code != 200:
        assert time.monotonic() < deadline


def test_pipelined_requests_are_counted(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(fakes.say("xyz", pause=0.3))
    url = serve(engine)
    with connected(url) as connection:
        connection.sendall(post("/v1/completions", {"prompt": "x"}) + HEALTH * 10_000)
        assert read_all(connection).count(b"HTTP/1.1 200") == 17


def test_a_body_must_go_on(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), body_timeout=0.3)
    with connected(url) as connection:
        connection.sendall(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nx")
        answer = connection.recv(2**16)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"stopped after 1 bytes" in answer


def test_bodies_wait_for_room(serve: Any, fakes: Any) -> None:
    """One that is announced and does not come holds what it announced; small ones pass."""
    url = serve(fakes.engine(), max_body=2**25, max_bodies=2**25 + 100_000)
    body = {"content": "x" * 190_000}
    with ThreadPoolExecutor(1) as pool:
        with connected(url) as slow:
            slow.sendall(b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 33554432\r\n\r\n")
            slow.sendall(b"x" * 2**24)  # more than sockets hold: it has been let in
            waiting = pool.submit(httpx.post, url + "/tokenize", json=body, timeout=20)
            assert httpx.post(url + "/tokenize", json={"content": "x"}).status_code == 200
            assert not wait([waiting], 0.5).done
        assert waiting.result().status_code == 200


def test_bodies_that_find_no_room(serve: Any, fakes: Any) -> None:
    """The first one is read, and stays, for as long as the second one waits."""
    engine = fakes.engine()
    encode, reads, goes_on = engine.tokenizer.encode, threading.Event(), threading.Event()

    def held(*args: Any, **kwargs: Any) -> Any:
        reads.set()
        assert goes_on.wait(20)
        return encode(*args, **kwargs)

    engine.tokenizer.encode = held
    url = serve(engine, max_body=100_000, max_bodies=100_000, body_timeout=1.0)
    body = post("/tokenize", {"content": "x" * 70_000})
    with connected(url) as first, connected(url) as late:
        first.sendall(body)
        assert reads.wait(10)
        late.sendall(body)
        assert late.recv(100).startswith(b"HTTP/1.1 503")
        goes_on.set()
        assert first.recv(100).startswith(b"HTTP/1.1 200")


def test_a_half_closed_client_gets_its_answer(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(fakes.say("slowly", pause=0.05))
    for body in ({"prompt": "x"}, STREAM):
        with connected(serve(engine)) as connection:
            connection.sendall(post("/v1/completions", body))
            connection.shutdown(socket.SHUT_WR)
            head, _, rest = read_all(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert (rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") if "stream" in body
                else json.loads(rest)["choices"][0]["text"] == "slowly")  # fmt: skip


def test_a_half_closed_client_in_the_middle_of_a_stream(serve: Any, fakes: Any) -> None:
    """The zero that asks whether it is there belongs to the length of the next chunk."""
    engine = fakes.engine(fakes.say("slowly", pause=0.1))
    url = serve(engine)
    with connected(url) as connection:
        connection.sendall(post("/v1/completions", STREAM))
        answer = connection.recv(2**16)
        connection.shutdown(socket.SHUT_WR)
        answer += read_all(connection)
    chunks = answer.partition(b"\r\n\r\n")[2]
    text = b""
    while chunks:
        size, _, rest = chunks.partition(b"\r\n")
        text, chunks = text + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    assert text.endswith(b"data: [DONE]\n\n")
    assert text.count(b'"text":') >= 6


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_closed_connection_still_cancels(
    serve: Any, fakes: Any, stream: bool, version: str
) -> None:
    def silent(request: Any, cancelled: Any) -> Any:
        cancelled.wait(20)
        yield from ()

    engine = fakes.engine(silent)
    url = serve(engine)
    with connected(url) as connection:
        connection.sendall(post("/v1/completions", {"prompt": "x", "stream": stream}, version))
        while not engine.requests:
            time.sleep(0.01)
    closed = time.monotonic()
    while not engine.cancelled:
        assert time.monotonic() < closed + 20
        time.sleep(0.01)


def test_http_1_0_has_no_chunks(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(fakes.say("abc")))
    with connected(url) as connection:
        connection.sendall(post("/v1/completions", STREAM, "1.0"))
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body.startswith(b"data: {")
    assert body.endswith(b"}\n\ndata: [DONE]\n\n")
    with connected(url) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert read_all(connection).endswith(b'{"status":"ok"}')


def wait_for_reset(connection: socket.socket) -> None:
    """Without reading anything."""
    poll = select.poll()
    poll.register(connection, 0)
    events = poll.poll(60_000)
    assert events
    assert events[0][1] & (select.POLLERR | select.POLLHUP)


def test_a_reader_that_never_reads_is_cancelled(serve: Any, fakes: Any) -> None:
    def endless(request: Any, cancelled: threading.Event) -> Iterator[Event]:
        yield Started(1, 0, 0)
        while not cancelled.wait(0.001):
            yield Delta("x" * 100_000, (120,))
        yield Finished("cancelled", Timings())

    engine = fakes.engine(endless)
    url = serve(engine, max_unread=1_000_000)
    with connected(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(post("/v1/completions", STREAM))
        deadline = time.monotonic() + 20
        while not engine.cancelled or engine.n_running:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        wait_for_reset(connection)
        assert httpx.get(url + "/health").status_code == 200


@pytest.mark.parametrize("limits", [Limits(send_timeout=0.5), Limits(unsent=2**20, patience=0.5)])
def test_what_nobody_takes_is_dropped(serve: Any, fakes: Any, limits: Limits) -> None:
    """A whole answer lies in the connection's buffer, with nothing left to cancel."""
    url = serve(fakes.engine(), limits=limits)
    with connected(url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = {"content": "x " * 250_000, "with_pieces": True}  # 10 MB
        connection.sendall(post("/tokenize", body))
        wait_for_reset(connection)


def test_settings_of_limits() -> None:
    limits = client_limits(Settings(), 100_000)
    assert (limits.connections, limits.per_address) == (1024, 512)
    few = client_limits(Settings(), 256)
    assert (few.connections, few.per_address) == (160, 120)
    assert room_for_connections(1000, 40) == 10
    given = Settings(max_header=1, header_timeout=2, forwarded_allow_ips=("10.0.0.0/8", "::1"))
    limits = client_limits(given, 1000)
    assert (limits.header, limits.header_timeout) == (1024, 2)
    assert [str(network) for network in limits.proxies] == ["10.0.0.0/8", "::1/128"]
    with pytest.raises(SettingsError, match="--forwarded-allow-ips: 'x' is no address"):
        client_limits(Settings(forwarded_allow_ips=("x",)), 1000)


class Member:
    """A connection that does nothing."""

    def __init__(self, host: str | None) -> None:
        self.host = host
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True

    def check(self, now: float) -> None: ...

    def n_stuck(self, now: float) -> int:
        return 0


def admitted(connections: Connections, hosts: list[str | None]) -> list[bool]:
    """Which of these hosts may have a connection, none of them idle."""

    async def admit() -> list[bool]:
        found = []
        for host in hosts:
            member = Member(host)
            found.append(connections.admit(member) is None)
            connections.set_busy(member)
        return found

    return asyncio.run(admit())


def test_what_counts_as_one_address() -> None:
    limits = Limits(per_address=1, proxies=(ip_network("10.0.0.0/8"),))
    hosts = ["1.1.1.1", "1.1.1.1", "::ffff:1.1.1.1", "1.1.1.2", "2001:db8::1", "2001:db8::2:1"]
    hosts += ["2001:db8:0:1::1", "10.0.0.1", "10.0.0.1", None, None]
    expected = [True, False, False, True, True, False, True, True, True, True, True]
    assert admitted(Connections(limits), hosts) == expected


def test_the_longest_idle_of_an_address_goes_first() -> None:
    async def admit() -> None:
        connections = Connections(Limits(connections=4, per_address=2))
        members = [Member(host) for host in ("1.1.1.1", "1.1.1.2", "1.1.1.2", "1.1.1.3", "1.1.1.2")]
        assert [connections.admit(member) for member in members] == [None] * 5
        assert [member.dropped for member in members] == [False, True, False, False, False]
        assert connections.admit(Member("1.1.1.4")) is None
        assert members[0].dropped
        for member in list(connections.open):
            connections.remove(member)
        assert not connections._peers
        assert not connections._idle

    asyncio.run(admit())


def test_no_file_descriptor_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The event loop drops what it cannot accept without a word."""

    def full(descriptor: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "dup", full)
    connections = Connections()
    for now in (1000.0, 1001.0, 1002.0):
        connections._report(now)
    assert [record.message for record in caplog.records] == [
        "no file descriptor is left: new connections are dropped (ulimit -n)"
    ]


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))


def test_more_idle_connections_than_files(tmp_path: Path) -> None:
    """Somebody else gets in, the log says what was done, and the soft limit is raised."""
    model, log = tmp_path / "tiny.gguf", tmp_path / "log"
    model.write_bytes(b"GGUF")
    port = free_port()
    script = Path(__file__).resolve().parents[2] / "support" / "scripted_serve.py"
    command = [sys.executable, str(script), "-m", str(model), "--port", str(port)]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stderr=errors, preexec_fn=few_files, env=os.environ)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_up(url, process, log, 60)
        with ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(connected(url))
            assert httpx.get(url + "/health", timeout=20).status_code == 200
            answer = httpx.post(url + "/tokenize", json={"content": "x"}, timeout=20)
            assert answer.status_code == 200
            until = time.monotonic() + 20
            while "idle ones closed to make room" not in log.read_text():  # each second
                assert time.monotonic() < until
                time.sleep(0.05)
    finally:
        process.terminate()
        process.wait(20)
    told = log.read_text()
    assert "at most 160 connections instead of 1024: the process may open 256 files" in told
    assert "Traceback" not in told
