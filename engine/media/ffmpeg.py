"""FFmpeg by PyAV, where it is installed: it is for videos, and for speech in AAC or of
another speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gguf_serve.engine.errors import MediaError

if TYPE_CHECKING:
    from types import ModuleType


def pyav(what: str) -> ModuleType:
    """The library, imported when it is first needed, since it loads FFmpeg's. MediaError: ``what``
    cannot be had without it."""
    try:
        import av
    except ImportError:
        raise MediaError(f"{what} needs PyAV: pip install 'gguf-serve[video]'") from None
    av.logging.set_level(None)  # else FFmpeg writes to stderr what clients' files are like
    return av
