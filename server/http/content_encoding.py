"""Bodies that come compressed (Content-Encoding), and never get longer than a body may be."""

from __future__ import annotations

import zlib

from gguf_serve.server.errors import ApiError, invalid

GZIP = 16 + zlib.MAX_WBITS  # as zlib wants it said
WBITS = {"gzip": GZIP, "x-gzip": GZIP, "deflate": zlib.MAX_WBITS}


def coding(header: str) -> str | None:
    """What a body is compressed with. ApiError 415 names what is not known here."""
    name = header.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in WBITS:
        raise ApiError(
            "unsupported_media_type_error",
            f"Content-Encoding: {name:.80} is not supported, only gzip or deflate",
            headers={"accept-encoding": "gzip, deflate"},
        )
    return name


def decoded(body: bytes, name: str, limit: int) -> bytes | None:
    """The body; None as soon as it is longer than the limit."""
    decompressor = zlib.decompressobj(WBITS[name])
    try:
        found = decompressor.decompress(body, limit + 1)
    except zlib.error as error:
        raise invalid(f"The request body is not valid {name}: {error}") from None
    if len(found) > limit:
        return None
    if not decompressor.eof:
        raise invalid(f"The request body is not valid {name}: its end is missing")
    if decompressor.unused_data:
        raise invalid(f"The request body is not valid {name}: there is more after its end")
    return found
