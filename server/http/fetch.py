"""Downloads that a request asks for, and files below one folder: bounded in every way.

A URL is fetched only from public addresses, unless the operator allows others: the address is
looked up once, checked, and that very address is connected to, at each redirect anew.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from msgspec import Struct, field

if TYPE_CHECKING:
    import httpx  # else imported when there is something to fetch: it takes 50 ms

from gguf_serve.server.http.room import Room

MAX_REDIRECTS = 3
DEFAULT_MAX_BYTES = 32 << 20
MAX_FETCHED = 256 << 20  # bytes that all requests together have fetched and not yet decoded
DEFAULT_TIMEOUT = 10.0  # seconds, for everything together
HEADERS = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "gguf-serve"}


class Fetcher(Struct, frozen=True):
    """``folder``: what file: URLs may name, None for nothing. ValueError says what is wrong."""

    folder: Path | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    timeout: float = DEFAULT_TIMEOUT
    allow_private: bool = False
    room: Room = field(default_factory=lambda: Room(MAX_FETCHED))

    def read_file(self, path: str) -> bytes:
        """A file below the folder; links are followed before that is checked."""
        if self.folder is None:
            raise ValueError("file: URLs are not allowed unless --media-path names a folder")
        root = self.folder.resolve()
        for candidate in (root / path.lstrip("/"), Path(path)):
            found = candidate.resolve()
            if found.is_relative_to(root) and os.path.isfile(found):
                break
        else:
            raise ValueError(f"there is no file {path!r:.200} below --media-path")
        if found.stat().st_size > self.max_bytes:
            raise ValueError(f"the file is longer than the limit of {self.max_bytes} bytes")
        return found.read_bytes()

    async def download(self, url: str) -> bytes:
        """The body of a URL."""
        import httpx

        try:
            async with asyncio.timeout(self.timeout):
                return await self._follow(url)
        except TimeoutError:
            raise ValueError(f"{shown(url)} took longer than {self.timeout:g} seconds") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"{shown(url)} cannot be fetched: {reason}") from None

    async def _follow(self, url: str) -> bytes:
        import httpx

        # ``download`` says when it has been enough.
        async with httpx.AsyncClient(timeout=None, trust_env=False) as client:
            for _ in range(MAX_REDIRECTS + 1):
                request = await self._request(client, url)
                response = await client.send(request, stream=True)
                try:
                    if not response.is_redirect:
                        return await self._body(url, response)
                    url = urljoin(url, response.headers["location"])
                finally:
                    await response.aclose()
        raise ValueError(f"{shown(url)}: more than {MAX_REDIRECTS} redirects")

    async def _request(self, client: httpx.AsyncClient, url: str) -> httpx.Request:
        """A request to an address that has been checked, in the name of the host."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{shown(url)} is not an http or https URL")
        host = parts.hostname
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = await self._address(host, port)
        literal = f"[{address}]" if ":" in address else address
        target = parts._replace(netloc=f"{literal}:{port}", fragment="").geturl()
        headers = {**HEADERS, "host": parts.netloc.rpartition("@")[2]}
        return client.build_request(
            "GET", target, headers=headers, extensions={"sni_hostname": host}
        )

    async def _address(self, host: str, port: int) -> str:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(info[4][0]) for info in found]
        for address in addresses:
            if not self.allow_private and not is_public(address):
                raise ValueError(
                    f"{host} has the address {address}, which is not public; "
                    "--media-allow-private permits it"
                )
        return addresses[0]

    async def _body(self, url: str, response: httpx.Response) -> bytes:
        if response.status_code != 200:
            raise ValueError(f"{shown(url)} was answered with {response.status_code}")
        too_long = ValueError(f"{shown(url)} is longer than the limit of {self.max_bytes} bytes")
        if int(response.headers.get("content-length") or 0) > self.max_bytes:
            raise too_long
        chunks, n_bytes = [], 0
        async for chunk in response.aiter_raw():
            n_bytes += len(chunk)
            if n_bytes > self.max_bytes:
                raise too_long
            chunks.append(chunk)
        return b"".join(chunks)


GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether it is on the public internet, and so is the IPv4 address that it may stand for."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    if ip in NAT64 or ip.ipv4_mapped:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    if ip not in GLOBAL_UNICAST or not (ip.is_global or ip.sixtofour):
        return False  # also ::127.0.0.1, and networks' own prefixes for NAT64
    return all(is_public(str(inner)) for inner in (ip.sixtofour, *(ip.teredo or ())) if inner)


def shown(url: str) -> str:
    """A URL for a message: without its query, which may be a secret."""
    return repr(url.partition("?")[0][:200])
