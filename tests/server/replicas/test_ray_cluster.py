"""The process that talks to Ray, where there is none."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_serve.engine.options import EngineOptions
from gguf_serve.server.replicas.ray_cluster import Wanted


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_it_says_so_and_ends() -> None:
    """While its input is open, as the server leaves it."""
    wanted = Wanted(Path("model.gguf"), EngineOptions(), 1, 1, None, 0, b"key")
    process = subprocess.Popen(
        [sys.executable, "-m", "gguf_serve.server.replicas.ray_cluster"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdin, process.stdout, process.stderr:
        process.stdin.write(pickle.dumps(wanted))
        process.stdin.flush()
        message = json.loads(process.stdout.readline())
        assert message["failure"].startswith("--replicas needs Ray: pip install")
        assert process.wait(60) == 1
        assert process.stderr.read() == b""
