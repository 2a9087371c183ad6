"""The proxy of bench_stages.py carries all bytes, after a while."""

from __future__ import annotations

import socket
import threading
import time

from bench_stages import carry


def test_bytes_come_late_and_whole() -> None:
    (near, into), (out, far) = socket.socketpair(), socket.socketpair()
    threading.Thread(target=carry, args=(into, out, 0.05), daemon=True).start()
    began = time.monotonic()
    near.sendall(b"one")
    assert far.recv(3) == b"one"
    assert time.monotonic() - began >= 0.05
    near.sendall(b"two" * 100_000)
    near.close()
    found = b""
    while data := far.recv(1 << 20):
        found += data
    assert found == b"two" * 100_000
    for end in (into, out, far):
        end.close()
