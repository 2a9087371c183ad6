"""Sockets that listen."""

from __future__ import annotations

import pytest

from gguf_serve.server.configure import SettingsError
from gguf_serve.server.sockets import bind, close


def test_a_port_is_shared_by_those_who_say_so() -> None:
    first = bind(["127.0.0.1"], 0, share=True)
    port = first[0].getsockname()[1]
    try:
        close(bind(["127.0.0.1"], port, share=True))
        with pytest.raises(SettingsError, match="is in use: choose another with --port"):
            bind(["127.0.0.1"], port)
    finally:
        close(first)
