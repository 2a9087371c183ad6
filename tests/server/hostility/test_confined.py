"""Where a server is given little: nothing to write to, no home, any user, little memory.

``unshare`` gives the process mounts of its own, all read-only; ``setpriv`` another user, who may
read what root may, because the interpreter may lie in root's home, and write nothing; a cgroup
bounds its memory. Skipped where this machine allows none of that.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from gguf_serve.kernels.opencl.platforms import list_devices

ROOT = Path(__file__).resolve().parents[3]
SECONDS = 240  # until a start is given up: every kernel may have to be compiled
MEMORY = 512 << 20
USER = "54321"
GROUPS = Path("/sys/fs/cgroup")
# Mounts of its own, after which `$1`, if there is one, is a folder with room for 16 KiB.
MOUNTS = r"""
set -e
mount --make-rprivate /
while read -r _ _ _ _ point _; do
    case "$point" in /proc*|/sys*|/dev*) ;; *) mount -o remount,bind,ro "$point" ;; esac
done < /proc/self/mountinfo
if [ -n "$1" ]; then mount -t tmpfs -o size=16k,mode=777 tmpfs "$1"; fi
shift
exec "$@"
"""
AS_SOMEBODY = [
    "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search",
]  # fmt: skip

Start = Callable[..., str]


def allowed() -> str:
    """Why this machine cannot confine a process; "" if it can."""
    if not list_devices():
        return "no OpenCL device"
    if missing := [name for name in ("unshare", "setpriv", "mount") if not shutil.which(name)]:
        return f"there is no {missing[0]}"
    tried = subprocess.run(
        [*confined(""), sys.executable, "-c", "open('/x', 'w')"], capture_output=True, text=True
    )
    refused = "Read-only file system: '/x'" in tried.stderr
    return "" if refused else f"no confinement: {tried.stderr.strip()[-200:]}"


def confined(small: str) -> list[str]:
    return ["unshare", "--mount", "bash", "-c", MOUNTS, "bash", small, *AS_SOMEBODY]


@pytest.fixture(scope="module")
def can_confine() -> None:
    if reason := allowed():
        pytest.skip(reason)


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A cgroup, of version 1 or 2, whose processes have MEMORY, and no swap."""
    one = (GROUPS / "memory", "memory.limit_in_bytes")
    parent, limit = one if one[0].is_dir() else (GROUPS, "memory.max")
    group = parent / f"gguf-serve-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(MEMORY))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no cgroup to bound memory with: {error}")
    yield group
    for _ in range(100):
        try:
            return group.rmdir()
        except OSError:  # its processes are about to end
            time.sleep(0.1)


@pytest.fixture
def start(can_confine: None, model: Path, tmp_path: Path) -> Iterator[Start]:
    """Serves the model; ``environment``: all that there is beside PATH."""
    processes: list[subprocess.Popen[bytes]] = []
    log = tmp_path / "log"

    def run(small: str = "", group: Path | None = None, **environment: str) -> str:
        with closing(socket.socket()) as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        command = [
            *confined(small), sys.executable, "-m", "gguf_serve.server", "-m", str(model),
            "--port", str(port), "-c", "512", "-np", "2",
        ]  # fmt: skip
        if group is not None:
            join = f'echo 0 > {group}/cgroup.procs; exec "$@"'
            command = ["bash", "-c", join, "bash", *command]
        kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        with log.open("wb") as file:
            processes.append(subprocess.Popen(
                command, env=kept | environment, stdout=file, stderr=file, cwd=ROOT
            ))  # fmt: skip
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            assert processes[-1].poll() is None, log.read_text()
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    return url
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"no start within {SECONDS} seconds: {log.read_text()}")

    yield run
    for process in processes:
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that anybody may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def model(folder: Path, conformance_model: Callable[[str], Path]) -> Path:
    return Path(shutil.copy(conformance_model("llama-dense"), folder))


def answers(url: str) -> bool:
    body = {"prompt": [5, 9, 70], "n_predict": 8, "temperature": 0, "ignore_eos": True}
    response = httpx.post(f"{url}/completion", json=body, timeout=60)
    return response.status_code == 200 and response.json()["tokens_predicted"] == 8


def test_nothing_to_write_to_no_home_any_user_little_memory(
    memory_group: Path, start: Start
) -> None:
    assert answers(start(group=memory_group))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["read-only", "full", "a file", "not there"])
def test_places_for_caches(start: Start, folder: Path, kind: str) -> None:
    """Of the programs that are compiled; home and the folder for temporary files are no better."""
    place = folder / "place"
    if kind == "a file":
        place.touch()
    elif kind != "not there":
        place.mkdir(mode=0o777)
    names = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TMPDIR"), str(place))
    assert answers(start(str(place) if kind == "full" else "", **names))
