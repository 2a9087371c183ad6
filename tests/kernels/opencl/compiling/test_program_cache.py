"""The cache of programs: what an entry depends on, and what becomes of one that is damaged."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

import gguf_serve
from gguf_serve.kernels.opencl import sources
from gguf_serve.kernels.opencl.compiling import program_cache
from gguf_serve.kernels.opencl.compiling.program_cache import (
    ProgramCache,
    cpu_identity,
    default_folder,
    program_key,
    source_hash,
    steering_variables,
)
from gguf_serve.kernels.opencl.platforms import DeviceInfo

CPU = DeviceInfo(0, "Intel(R) Xeon(R) Processor", "platform", "driver", "cpu", 1 << 30, 2)
CPUINFO = (
    "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: {}\nmodel name\t: {}\nflags\t\t: {}\n"
)


def key(info: DeviceInfo = CPU, defines: tuple[str, ...] = ("NT=1",)) -> str:
    return program_key("matrix/embed.cl", defines, info)


def cpuinfo(folder: Path, model: str, flags: str) -> Path:
    path = folder / f"{model} {flags}"
    path.write_text(CPUINFO.format(model, CPU.name, flags) + "\nprocessor\t: 1\n")
    return path


def test_an_entry_comes_back(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path / "new" / "folder")
    assert cache.load("a") is None
    cache.store("a", b"binary")
    assert cache.load("a") == b"binary"
    assert cache.unwritable is None


@pytest.mark.parametrize("damage", ["cut", "emptied", "changed", "of another format"])
def test_a_damaged_entry_is_none(tmp_path: Path, damage: str) -> None:
    cache = ProgramCache(tmp_path)
    cache.store("a", b"binary" * 1000)
    (path,) = tmp_path.glob("*.bin")
    data = bytearray(path.read_bytes())
    if damage == "changed":
        data[-10] ^= 1
    elif damage == "of another format":
        data[0] ^= 1
    path.write_bytes({"cut": data[:-1], "emptied": b""}.get(damage, data))
    assert cache.load("a") is None
    assert not path.exists()


def test_processors_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Both call themselves what a cloud calls all of its processors."""
    paths = [cpuinfo(tmp_path, "85", "sse2 avx2"), cpuinfo(tmp_path, "143", "sse2 avx2")]
    paths.append(cpuinfo(tmp_path, "143", "sse2 avx2 avx512f"))
    found = [cpu_identity(path) for path in paths]
    assert len({tuple(sorted(identity.items())) for identity in found}) == 3
    same = cpuinfo(tmp_path, "143", "avx2 sse2")
    assert cpu_identity(same) == found[1]  # in whatever order


def test_what_a_key_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [
        key(), key(defines=("NT=2",)), key(replace(CPU, driver="newer")),
        key(replace(CPU, platform="other")), key(replace(CPU, name="other")),
    ]  # fmt: skip
    monkeypatch.setenv("CL_CONFIG_CPU_TARGET_ARCH", "core-avx2")
    keys.append(key())
    monkeypatch.setattr(program_cache, "cpu_identity", lambda: {"model": "another"})
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key(replace(CPU, index=5, memory_bytes=1)) == keys[-1]


def test_variables_that_only_count_or_name_folders_do_not_matter() -> None:
    environment = {
        "CL_CONFIG_CPU_TBB_NUM_WORKERS": "2", "POCL_MAX_PTHREAD_COUNT": "2",
        "POCL_CACHE_DIR": "/tmp", "POCL_WORK_GROUP_METHOD": "cbs", "HOME": "/root",
    }  # fmt: skip
    assert steering_variables(environment) == {"POCL_WORK_GROUP_METHOD": "cbs"}


def test_a_change_of_an_included_file_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.cl").write_text('#include "b.cl"\n')
    (tmp_path / "b.cl").write_text('  #include "c.cl"\n')
    monkeypatch.setattr(sources, "SOURCES", tmp_path)
    kept = (source_hash, sources.with_included, sources._read)
    found = []
    for text in ("1", "2"):
        (tmp_path / "c.cl").write_text(text)
        for function in kept:
            function.cache_clear()
        found.append(source_hash("a.cl"))
    for function in kept:
        function.cache_clear()
    assert found[0] != found[1]


def test_a_folder_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    cache = ProgramCache(file / "programs")
    with caplog.at_level(logging.WARNING):
        for name in ("a", "b"):
            with cache.locked(name) as held:
                assert held
            cache.store(name, b"binary")
            assert cache.load(name) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(file) in caplog.text
    assert cache.unwritable == str(file / "programs")


def test_a_disk_that_is_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache = ProgramCache(tmp_path)
    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        cache.store("a", b"binary")
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_home(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(program_cache, "cache_folder", lambda: None)
    cache = ProgramCache(default_folder())
    with caplog.at_level(logging.WARNING):
        cache.store("a", b"binary")
    assert "XDG_CACHE_HOME" in caplog.text


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path, most_bytes=5000)
    for at, name in enumerate("abcd"):
        cache.store(name, bytes([at]) * 1000)
        os.utime(tmp_path / f"{name}.bin", (at, at))
    assert cache.load("a") is not None  # used now
    cache.store("e", b"e" * 2000)
    assert [name for name in "abcde" if cache.load(name) is not None] == ["a", "d", "e"]


def test_a_lock_is_held_once_and_dies_with_its_process(tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path)
    with cache.locked("a") as first, cache.locked("a") as second, cache.locked("b") as other:
        assert (first, second, other) == (True, False, True)
    assert list(tmp_path.iterdir()) == []
    program = (
        "import sys; from pathlib import Path\n"
        "from gguf_serve.kernels.opencl.compiling.program_cache import ProgramCache\n"
        "with ProgramCache(Path(sys.argv[1])).locked('a') as held: print(held, flush=True); input()"
    )
    root = str(Path(gguf_serve.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == b"True\n"
    with cache.locked("a") as held:
        assert not held
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    with cache.locked("a") as held:
        assert held
