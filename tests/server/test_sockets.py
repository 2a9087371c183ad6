"""Sockets that listen."""

from __future__ import annotations

import pytest

from gguf_serve.server.configure import SettingsError
from gguf_serve.server.sockets import bind, close, is_open


def test_a_port_is_shared_by_those_who_say_so() -> None:
    first = bind(["127.0.0.1"], 0, share=True)
    port = first[0].getsockname()[1]
    try:
        close(bind(["127.0.0.1"], port, share=True))
        with pytest.raises(SettingsError, match="is in use: choose another with --port"):
            bind(["127.0.0.1"], port)
    finally:
        close(first)


@pytest.mark.parametrize(("host", "others"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_who_can_reach_a_socket(host: str, others: bool) -> None:
    (listener,) = bind([host], 0)
    with listener:
        assert is_open(listener) is others
