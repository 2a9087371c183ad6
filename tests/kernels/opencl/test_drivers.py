"""Drivers that pip installs: where they lie, and loading one aside."""

from __future__ import annotations

import ctypes.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from gguf_serve.kernels.opencl import drivers
from gguf_serve.kernels.opencl.drivers import (
    LOADER_VARIABLES,
    bundled_drivers,
    load_ahead,
    wait_for_loading,
)


def test_drivers_that_pip_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("prefix", "base_prefix"):
        monkeypatch.setattr(drivers.sys, name, str(tmp_path / name))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(drivers, "recorded_drivers", list)
    assert bundled_drivers() == []
    library = tmp_path / "base_prefix" / "lib" / "libintelocl.so"
    library.parent.mkdir(parents=True)
    library.touch()
    assert bundled_drivers() == [library]
    nearer = tmp_path / "prefix" / "lib" / "libintelocl.so"
    nearer.parent.mkdir(parents=True)
    nearer.touch()
    assert bundled_drivers() == [nearer]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where a package's list of files says that the library is, in no folder of this Python's."""
    for name in ("prefix", "base_prefix"):
        monkeypatch.setattr(drivers.sys, name, str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    packages = tmp_path / "lib" / "python3" / "dist-packages"
    about = packages / "intel_opencl_rt-2099.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: intel-opencl-rt\nVersion: 1\n")
    (about / "RECORD").write_text("../../libintelocl.so-gdb.py,,\n../../libintelocl.so,,\n")
    monkeypatch.setattr(drivers.sys, "path", [str(packages), *drivers.sys.path])
    drivers.recorded_drivers.cache_clear()
    yield tmp_path / "lib" / "libintelocl.so"
    drivers.recorded_drivers.cache_clear()


def test_a_driver_elsewhere(recorded: Path) -> None:
    """Debian's pip and ``--prefix`` put it where only the package's list of files says."""
    recorded.touch()
    assert bundled_drivers() == [recorded]
    assert not drivers.is_lost()


def test_a_package_without_its_library(recorded: Path) -> None:
    """As pip leaves it with ``--target``."""
    assert bundled_drivers() == []
    assert drivers.is_lost()


def test_a_driver_that_is_loaded_aside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Unless the user has named the drivers; one that cannot be loaded is the loader's matter."""
    library = Path(ctypes.util.find_library("c") or "libc.so.6")
    loaded: list[Path] = []
    monkeypatch.setattr(drivers, "_load", loaded.append)
    for name in LOADER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(drivers, "bundled_drivers", lambda: [library])
    load_ahead(-1)
    wait_for_loading()
    assert loaded == [library]
    monkeypatch.setenv(LOADER_VARIABLES[0], str(tmp_path))
    load_ahead(-1)
    wait_for_loading()
    assert loaded == [library]


def test_a_driver_that_is_damaged(tmp_path: Path) -> None:
    damaged = tmp_path / "libdamaged.so"
    damaged.write_bytes(b"no library")
    drivers._load(damaged)


def test_a_driver_that_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(drivers, "_left_out", set())
    monkeypatch.delenv("POCL_DEVICES", raising=False)
    pocl, other = tmp_path / "pocl.icd", tmp_path / "nvidia.icd"
    pocl.write_text("/usr/lib/libpocl.so.2.10.0\n")
    other.write_text("libnvidia-opencl.so.1\n")
    assert not drivers.is_left_out(pocl)
    drivers.leave_out_unused()
    assert drivers.is_left_out(pocl)
    assert not drivers.is_left_out(other)
    assert not drivers.is_left_out(tmp_path / "missing.icd")
    monkeypatch.setenv("POCL_DEVICES", "cuda")
    assert not drivers.is_left_out(pocl)
