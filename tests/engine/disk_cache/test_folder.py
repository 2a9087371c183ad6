"""The folder of pages: its limit, its order, what happens to it, and who shares it."""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gguf_serve.engine.disk_cache import folder as folder_module
from gguf_serve.engine.disk_cache.folder import LOCK, Folder
from gguf_serve.engine.disk_cache.names import PageName, beginning, chain, root_of
from gguf_serve.engine.disk_cache.page_file import Kind, file_bytes, file_name

ROOT = root_of({"model": "abc"})
N_DATA = 1000
SIZE = file_bytes(4, N_DATA)
WRITER = """
import sys, random
from pathlib import Path
from gguf_serve.engine.disk_cache.folder import Folder
from tests_of_folder import names, put
folder = Folder(Path(sys.argv[1]), 1 << 20)
put(folder, names(0, 3))
print("ready", flush=True)
for i in range(1, 10_000):
    put(folder, names(i, 3))
"""


def names(seed: int, n: int) -> list[PageName]:
    """A chain of n pages."""
    ids = [seed, *range(4 * n - 1)]
    return list(chain(ROOT, beginning(ROOT), ids, 4))


def data(name: PageName) -> bytes:
    return name.key * (N_DATA // 32) + bytes(N_DATA % 32)


def put(folder: Folder, pages: list[PageName]) -> list[bool]:
    """Use a chain: what is there is touched, what is not is written."""
    stamps = zip(pages, folder.stamps(len(pages)), strict=True)
    return [
        folder.touch(page, Kind.KV, stamp)
        or folder.write(page, Kind.KV, memoryview(data(page)), stamp)
        for page, stamp in stamps
    ]


def there(folder: Folder, pages: list[PageName]) -> list[bool]:
    return [folder.read(page, Kind.KV, N_DATA) == data(page) for page in pages]


def files(path: Path) -> list[Path]:
    return sorted(path.glob("*.kv"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv"


def test_what_was_written_is_read_by_another(path: Path) -> None:
    pages = names(1, 3)
    assert put(Folder(path, 1 << 20), pages) == [True] * 3
    other = Folder(path, 1 << 20)
    assert there(other, pages) == [True] * 3
    assert there(other, names(2, 1)) == [False]
    other.look()
    assert (other.n_bytes, other.n_files) == (3 * SIZE, 3)


def test_it_is_for_its_user_alone(path: Path) -> None:
    put(Folder(path, 1 << 20), names(1, 1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


def test_two_kinds_of_one_page(path: Path) -> None:
    folder, (page,) = Folder(path, 1 << 20), names(1, 1)
    (stamp,) = folder.stamps(1)
    assert folder.write(page, Kind.STATE, memoryview(b"state"), stamp)
    assert not folder.has(page, Kind.KV)
    assert folder.read(page, Kind.STATE, 5) == b"state"


def test_the_end_of_what_was_used_longest_ago_goes_first(path: Path) -> None:
    folder = Folder(path, 10 * SIZE)
    first, second = names(1, 4), names(2, 4)
    put(folder, first)
    put(folder, second)
    put(folder, first)
    put(folder, names(3, 3))
    assert there(folder, first) == [True] * 4
    assert there(folder, second) == [True, True, False, False]
    assert folder.n_evicted == 2


def test_a_beginning_in_use_outlives_what_continues_it(path: Path) -> None:
    """Ten times the limit in random chats after one system prompt."""
    folder, generator, limit = Folder(path, 20 * SIZE), random.Random(1), 20 * SIZE
    system = list(range(12))
    for _ in range(50):
        ids = [*system, *(generator.randrange(1 << 20) for _ in range(16))]
        put(folder, list(chain(ROOT, beginning(ROOT), ids, 4)))
        assert sum(file.stat().st_size for file in files(path)) == folder.n_bytes <= limit
    assert there(folder, list(chain(ROOT, beginning(ROOT), system, 4))) == [True] * 3
    assert folder.n_written > 10 * 20


def test_the_order_outlives_a_restart(path: Path) -> None:
    folder = Folder(path, 10 * SIZE)
    first, second = names(1, 4), names(2, 4)
    put(folder, first)
    put(folder, second)
    put(folder, first)
    again = Folder(path, 10 * SIZE)
    again.look()
    put(again, names(3, 3))
    assert there(again, first) == [True] * 4
    assert there(again, second)[2:] == [False, False]


def test_a_chain_longer_than_the_limit_keeps_its_beginning(path: Path) -> None:
    folder, pages = Folder(path, 5 * SIZE), names(1, 8)
    assert put(folder, pages)[:5] == [True] * 5
    assert there(folder, pages) == [True] * 5 + [False] * 3


def test_a_page_larger_than_the_limit(path: Path) -> None:
    assert put(Folder(path, SIZE - 1), names(1, 1)) == [False]


def test_a_smaller_limit_than_last_time(path: Path) -> None:
    put(Folder(path, 1 << 20), names(1, 8))
    smaller = Folder(path, 3 * SIZE)
    smaller.look()
    assert there(smaller, names(1, 8)) == [True] * 3 + [False] * 5


def test_a_clock_that_goes_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(Folder(path, 10 * SIZE), names(1, 4))
    folder = Folder(path, 10 * SIZE)
    folder.look()
    monkeypatch.setattr(folder_module.time, "time_ns", lambda: 1)
    assert min(folder.stamps(3)) > max(file.stat().st_mtime_ns for file in files(path))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "renamed"])
def test_damage_is_deleted_and_counted(path: Path, damage: str) -> None:
    folder, pages = Folder(path, 1 << 20), names(1, 2)
    put(folder, pages)
    file = path / file_name(pages[0], Kind.KV)
    whole = file.read_bytes()
    if damage == "renamed":
        (path / file_name(pages[1], Kind.KV)).replace(file)
    else:
        flipped = whole[:200] + bytes([whole[200] ^ 4]) + whole[201:]
        file.write_bytes({"cut": whole[:-1], "flipped": flipped, "empty": b""}[damage])
    assert folder.read(pages[0], Kind.KV, N_DATA) is None
    assert (folder.n_corrupt, file.exists()) == (1, False)
    assert put(folder, pages[:1]) == [True]
    assert there(folder, pages[:1]) == [True]


def test_files_of_others_stay(path: Path) -> None:
    folder = Folder(path, 2 * SIZE)
    other = path / "notes.txt"
    other.write_text("mine")
    os.utime(other, ns=(1, 1))
    put(folder, names(1, 2))
    put(folder, names(2, 2))
    assert other.read_text() == "mine"
    assert folder.n_bytes <= 2 * SIZE


def test_what_killed_writers_have_left_goes(path: Path) -> None:
    folder = Folder(path, 1 << 20)
    (path / "0123456789abcdef.part").write_bytes(b"half")
    folder.look()
    assert [file.name for file in path.iterdir()] == [LOCK]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_takes_nothing(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    """One warning, nothing half is left, reading goes on, and later so does writing."""
    folder, pages = Folder(path, 1 << 20), names(1, 3)
    put(folder, pages[:1])
    real = os.utime

    def fails(file: Path, ns: tuple[int, int]) -> None:
        if str(file).endswith(".part"):
            raise OSError(number, os.strerror(number))
        real(file, ns=ns)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(folder_module.os, "utime", fails)
        assert put(folder, pages) == [True, False, False]
        patch.setattr(folder_module, "PAUSE", 0.0)
        folder._rests_until = 0.0
        assert put(folder, pages) == [True, False, False]
    assert [record.args[-1] for record in caplog.records] == [os.strerror(number)]
    assert sorted(file.suffix for file in path.iterdir()) == ["", ".kv"]
    assert there(folder, pages) == [True, False, False]
    assert put(folder, pages) == [True] * 3
    assert folder.n_bytes == 3 * SIZE


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such limits")
def test_a_disk_that_becomes_full_within_a_file(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Here the system takes the first bytes of a page, and no more."""
    import resource

    folder, pages = Folder(path, 1 << 20), names(1, 3)
    put(folder, pages[:1])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, before[1]))
    try:
        assert put(folder, pages) == [True, False, False]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caplog.records) == 1
    assert there(folder, pages) == [True, False, False]
    assert {file.suffix for file in path.iterdir()} == {"", ".kv"}
    folder._rests_until = 0.0
    assert put(folder, pages) == [True] * 3


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder with a chain, for a user who may read it and nothing else."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("it takes root to become another user")
    with tempfile.TemporaryDirectory() as outside:  # pytest's folders are for one user
        path = Path(outside) / "kv"
        put(Folder(path, 1 << 20), names(1, 2))
        for found, mode in (
            (Path(outside), 0o755),
            (path, 0o755),
            *((f, 0o644) for f in files(path)),
        ):
            found.chmod(mode)
        os.seteuid(65534)
        try:
            yield path
        finally:
            os.seteuid(0)


def test_a_read_only_folder(read_only: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is there is read, nothing is added, and one warning says so."""
    folder, pages = Folder(read_only, 1 << 20), names(1, 3)
    folder.look()
    folder._rests_until = 0.0
    assert put(folder, pages) == [True, True, False]
    assert there(folder, pages) == [True, True, False]
    assert [record.args[-1] for record in caplog.records] == ["Permission denied"]
    assert len(files(read_only)) == 2


def test_a_folder_that_goes_away(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, pages = Folder(path, 1 << 20), names(1, 2)
    put(folder, pages)
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    assert there(folder, pages) == [False, False]
    assert put(folder, names(2, 2)) == [False, False]
    assert len(caplog.records) == 1


def test_a_folder_that_cannot_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    folder = Folder(tmp_path / "file" / "kv", 1 << 20)
    folder.look()
    assert put(folder, names(1, 1)) == [False]
    assert "file/kv cannot be written to: Not a directory" in caplog.text


def test_servers_share_the_limit(path: Path) -> None:
    """Each counts what the others have written; nothing is counted twice."""
    servers = [Folder(path, 10 * SIZE) for _ in range(3)]
    for i in range(12):
        put(servers[i % 3], names(i, 2))
        put(servers[(i + 1) % 3], names(i, 2))
        n = len(files(path))
        assert (servers[i % 3].n_bytes, n) == (n * SIZE, n)
        assert n <= 10


@pytest.mark.parametrize("n_times", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_writers_that_are_killed(path: Path, tmp_path: Path, n_times: int) -> None:
    """At random moments: whatever has a page's name is whole, and the next one goes on."""
    (tmp_path / "tests_of_folder.py").write_text(Path(__file__).read_text())
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    generator = random.Random(1)
    for _ in range(n_times):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], env=environment, stdout=subprocess.PIPE
        )
        with writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            try:
                writer.wait(generator.uniform(0.01, 0.1))
            except subprocess.TimeoutExpired:
                writer.send_signal(signal.SIGKILL)
    assert files(path)
    folder = Folder(path, 1 << 20)
    folder.look()
    pages = [page for i in range(10_000) for page in names(i, 3)]
    known = {file_name(page, Kind.KV): page for page in pages}
    assert all(there(folder, [known[file.name] for file in files(path)]))
    assert not list(path.glob("*.part"))
    assert folder.n_bytes == sum(file.stat().st_size for file in files(path))
