"""The listening sockets: TCP on every address, or Unix sockets."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Sequence

from gguf_serve.server.configure import SettingsError, reason


def bind(hosts: Sequence[str], port: int, *, share: bool = False) -> list[socket.socket]:
    """A bound socket for each address of each host; SettingsError says which cannot be. ``share``:
    other processes may have the port too."""
    sockets: list[socket.socket] = []
    try:
        for host in hosts:
            if host.endswith(".sock"):
                sockets.append(bind_unix(host))
            else:
                sockets += bind_tcp(host, port, share)
    except SettingsError:
        close(sockets)
        raise
    return sockets


def bind_tcp(host: str, port: int, share: bool = False) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(f"--host: cannot listen on {host}: {reason(error)}") from None
    sockets: list[socket.socket] = []
    for family, _, _, _, address in dict.fromkeys(found):
        listener = socket.socket(family, socket.SOCK_STREAM)
        sockets.append(listener)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind(address)
            listener.listen(2048)  # at once: a second server must fail here, not later
        except OSError as error:
            close(sockets)
            raise cannot_bind(host, port, error) from None
    return sockets


def cannot_bind(host: str, port: int, error: OSError) -> SettingsError:
    if error.errno == errno.EADDRINUSE:
        return SettingsError(f"port {port} of {host} is in use: choose another with --port")
    return SettingsError(f"cannot listen on {host}, port {port}: {reason(error)}")


def bind_unix(path: str) -> socket.socket:
    """A Unix socket; the file that a dead server has left is taken over."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if is_stale(path):
            os.unlink(path)
        listener.bind(path)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"--host: {path} is in use") from None
        raise SettingsError(f"--host: cannot listen on {path}: {reason(error)}") from None
    return listener


def is_stale(path: str) -> bool:
    """True for a socket that nobody listens on."""
    if not os.path.exists(path) or not stat.S_ISSOCK(os.stat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(path) == errno.ECONNREFUSED


def address(listener: socket.socket, encrypted: bool = False) -> str:
    """What to type into a client."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"{'https' if encrypted else 'http'}://{host}:{name[1]}"


def is_open(listener: socket.socket) -> bool:
    """Whether others than this machine's processes can reach it."""
    if listener.family == socket.AF_UNIX:
        return False
    return not ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def close(sockets: Sequence[socket.socket]) -> None:
    for listener in sockets:
        listener.close()


def unlink(paths: Sequence[str]) -> None:
    for path in paths:
        if path.endswith(".sock") and os.path.exists(path):
            os.unlink(path)
