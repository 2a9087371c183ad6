"""The container's health check, against servers behind a prefix and on the port of a variable."""

from __future__ import annotations

from typing import Any

import pytest
from listening import free_port

from gguf_serve.server.container.health_check import is_healthy


@pytest.mark.parametrize("before", [("python", "/usr/bin/serve"), ("tini", "--", "gguf-serve")])
def test_port_and_prefix_of_the_command_line(serve: Any, fakes: Any, before: Any) -> None:
    engine = fakes.engine()
    port = serve(engine, prefix="/models").rpartition(":")[2].split("/")[0]
    given = [*before, "-m", "a.gguf", "--host", "0.0.0.0", "--port", port]
    assert is_healthy([*given, "--api-prefix", "/models/"])
    assert not is_healthy(given)
    engine.healthy = False
    assert not is_healthy([*given, "--api-prefix", "/models/"])


def test_variables_count_too(serve: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    port = serve(fakes.engine()).rpartition(":")[2]
    monkeypatch.setenv("LLAMA_ARG_PORT", port)
    assert is_healthy(["serve", "-m", "a.gguf"])


def test_nobody_listens() -> None:
    assert not is_healthy(["serve", "-m", "a.gguf", "--port", str(free_port())])
