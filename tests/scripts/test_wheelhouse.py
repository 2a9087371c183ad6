"""A folder of wheels and a model is all that a machine without a network needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# In a network namespace whose only interface, loopback, is down at first.
OFFLINE = ("unshare", "--map-root-user", "--net")
STAGE = r"""
import fcntl, json, socket, struct, subprocess, sys, time, urllib.request
from pathlib import Path

SET_FLAGS, IS_UP = 0x8914, 1  # SIOCSIFFLAGS, IFF_UP
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
    fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh14x", b"lo", IS_UP))
assert len(Path("/proc/net/route").read_text().splitlines()) == 1, "only the heading: no routes"

folder, python = Path(sys.argv[1]), sys.argv[2]
subprocess.run([python, "-m", "pip", "install", "-q", "--no-index", "--find-links",
                folder / "wheels", "gguf-serve[cpu]"], check=True)
(model,) = folder.glob("*.gguf")
server = subprocess.Popen([Path(python).parent / "serve", "-m", model, "--port", "8080"])
try:
    body = json.dumps({"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0})
    for attempt in range(600):
        assert server.poll() is None, "the server has ended"
        try:
            request = urllib.request.Request("http://127.0.0.1:8080/v1/completions",
                                             body.encode(), {"content-type": "application/json"})
            print(json.load(urllib.request.urlopen(request))["choices"][0]["text"])
            break
        except OSError:  # not there, or 503 while it loads
            time.sleep(1)
finally:
    server.terminate()
    assert server.wait(60) == 0
"""


def run(*command: str | Path, **env: str) -> str:
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **env}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def has_namespaces() -> bool:
    if shutil.which(OFFLINE[0]) is None:
        return False
    return subprocess.run([*OFFLINE, "true"], check=False, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(not has_namespaces(), reason="no network namespaces for this user")
def test_installing_and_serving_without_a_network(tmp_path: Path) -> None:
    environment, folder = tmp_path / "environment", tmp_path / "wheelhouse"
    run(ROOT / "scripts" / "wheelhouse.sh", folder, PYTHON=sys.executable)
    run(sys.executable, "-m", "venv", environment)
    said = run(
        *OFFLINE, sys.executable, "-c", STAGE, folder, environment / "bin" / "python",
        PYTHONPATH="", XDG_CACHE_HOME=str(tmp_path / "cache"),
    )  # fmt: skip
    assert "Paris" in said


def test_without_arguments_it_says_how() -> None:
    result = subprocess.run(
        [ROOT / "scripts" / "wheelhouse.sh"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("Makes a folder from which")
    assert "--no-index" in result.stderr
