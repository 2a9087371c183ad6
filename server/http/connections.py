"""How many connections there may be, which of them have to go, and how long each may take.

A ``Connection`` (connection.py) says what state it is in; one timer looks at all of them each
second. When there is no room the longest idle connection is closed for a new one.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import resource
from typing import Protocol

from msgspec import Struct, field

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
log = logging.getLogger(__name__)

OVERFLOW = 32  # connections beyond the limit that are told so; those beyond are dropped
OTHER_FILES = 64  # open at the same time beside connections: the model, downloads, drivers
SWEEP_SECONDS = 1.0
ABORT = "gguf_serve.abort"  # ASGI extension: a function that closes the connection at once
REPORT_SECONDS = 60.0  # between two lines of the log about the same


class Limits(Struct, frozen=True):
    """What a client may take before anything has looked at its request; sizes in bytes."""

    connections: int = 1024
    per_address: int = 512
    request_line: int = 16 << 10
    header: int = 64 << 10  # with the request line
    header_count: int = 100
    header_timeout: float = 15.0  # seconds, from the connection or the first byte on
    idle_timeout: float = 60.0  # seconds between two requests of a connection
    send_timeout: float = 60.0  # seconds for which nothing of what waits for a client is taken
    unsent: int = 64 << 20  # of all answers of which nothing has been taken for a while,
    patience: float = 5.0  # seconds long
    proxies: tuple[Network, ...] = ()  # their clients are many: not counted by address


class Member(Protocol):
    """What the registry needs of a connection."""

    host: str | None  # None: a Unix socket

    def drop(self) -> None:
        """Close without a word."""
        ...

    def check(self, now: float) -> None:
        """Close if it takes longer than it may."""
        ...

    def n_stuck(self, now: float) -> int:
        """Bytes that wait for its client, if that has taken nothing for ``patience``."""
        ...


class Peer(Struct):
    """The connections of one address; idle ones in the order in which they became so."""

    n: int = 0
    idle: dict[Member, None] = field(default_factory=dict)


class Connections:
    """All connections of a server. Used in the event loop only."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.open: set[Member] = set()
        self._idle: dict[Member, None] = {}  # the longest idle first
        self._peers: dict[str, Peer] = {}
        self._n_overflow = 0
        self._n_closed = self._n_refused = 0  # since the last line of the log
        self._reported = -REPORT_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, member: Member) -> str | None:
        """Take a connection in, idle at first; what to tell its client if there is no room.

        Every admitted connection is to be given to ``remove`` in the end, refused ones too.
        """
        refusal = self._refusal(member)
        self.open.add(member)
        if self._timer is None:
            self._arm()
        peer = self._peers.setdefault(address_key(member.host), Peer())
        peer.n += 1
        if refusal is None:
            self.set_idle(member)
        return refusal

    def remove(self, member: Member) -> None:
        if member not in self.open:
            return
        self.set_busy(member)
        self.open.discard(member)
        key = address_key(member.host)
        self._peers[key].n -= 1
        if not self._peers[key].n:
            del self._peers[key]

    def set_idle(self, member: Member) -> None:
        """It has no request that is being answered: from now on it may have to make room."""
        if member in self.open:
            self._idle[member] = None
            self._peers[address_key(member.host)].idle[member] = None

    def set_busy(self, member: Member) -> None:
        if self._idle.pop(member, self) is None:
            del self._peers[address_key(member.host)].idle[member]

    @property
    def overflows(self) -> bool:
        """Whether so many are above the limit that a new one is not even answered."""
        return len(self.open) >= self.limits.connections + OVERFLOW

    def _refusal(self, member: Member) -> str | None:
        """Make room if something idle holds it; else why there is none."""
        limits = self.limits
        peer = self._peers.get(address_key(member.host), Peer())
        if peer.n >= limits.per_address and self._is_counted(member.host):
            if not self._free(peer.idle):
                self._n_refused += 1
                return f"there are {limits.per_address} connections of your address already"
        elif len(self.open) >= limits.connections and not self._free(self._idle):
            self._n_refused += 1
            return f"there are {limits.connections} connections already"
        return None

    def _is_counted(self, host: str | None) -> bool:
        """Whether the limit of an address holds for it: not for proxies, nor Unix sockets."""
        try:
            address = ipaddress.ip_address(host or "")
        except ValueError:
            return False
        return not any(address in network for network in self.limits.proxies)

    def _free(self, idle: dict[Member, None]) -> bool:
        """Close the longest idle one."""
        member = next(iter(idle), None)
        if member is None:
            return False
        self._n_closed += 1
        self.remove(member)
        member.drop()
        return True

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        if self.open:
            self._arm()
        now = asyncio.get_running_loop().time()
        for member in list(self.open):
            member.check(now)
        self._free_memory(now)
        self._report(now)

    def _free_memory(self, now: float) -> None:
        """Close the connections with the longest unread answers, while there is too much of
        them; each alone may have less than its limit."""
        stuck = {member: n for member in self.open if (n := member.n_stuck(now))}
        total = sum(stuck.values())
        for member in sorted(stuck, key=stuck.__getitem__, reverse=True):
            if total <= self.limits.unsent:
                break
            log.warning("closed a connection that had %d bytes unread", stuck[member])
            total -= stuck[member]
            member.drop()

    def _report(self, now: float) -> None:
        """Say what has been refused or closed, but not for each."""
        if now - self._reported < REPORT_SECONDS:
            return
        if self._n_closed or self._n_refused:
            log.warning(
                "%d connections: %d idle ones closed to make room, %d refused (--max-connections, "
                "--max-connections-per-address)",
                len(self.open), self._n_closed, self._n_refused,
            )  # fmt: skip
            self._reported, self._n_closed, self._n_refused = now, 0, 0
        elif not has_free_files():
            log.error("no file descriptor is left: new connections are dropped (ulimit -n)")
            self._reported = now


def address_key(host: str | None) -> str:
    """What counts as one address: of IPv6 the network of 64 bits that one subscriber gets."""
    if host is None or ":" not in host:
        return host or ""
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or int(address) >> 64)


def has_free_files() -> bool:
    try:
        os.close(os.dup(2))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    return True


def raise_file_limit() -> int:
    """As many open files as the system allows this process; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # some systems have a limit of their own below the hard one
            pass
    return soft if soft != resource.RLIM_INFINITY else 2**31 - 1


def room_for_connections(wanted: int, n_files: int) -> int:
    """So many that accepting never fails for want of file descriptors."""
    return min(wanted, max(n_files - OTHER_FILES - OVERFLOW, n_files // 4))
