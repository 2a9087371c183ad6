"""A machine of its own, as far as a kernel's namespaces go: a root file system of Debian's.

debootstrap makes it; commands run in it by chroot, with mounts and processes of their own. One of
another kind of processor is emulated by QEMU, known to a user namespace alone, not to this machine.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

ROOT = Path(__file__).resolve().parents[2]
SUITE = "trixie"
FROM_THE_HOST = ("resolv.conf", "hosts")  # of /etc, as engines of containers do
# Whom this machine's network is to be trusted by, where no package writes its own.
CERTIFICATES, THEIR_COPY = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    "etc/certificates-of-the-host",
)
CHECKOUT = ("pyproject.toml", "setup.py", "README.md", "LICENSE",
            "gguf_serve", "server", "engine", "kernels")  # fmt: skip
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
# Runs "$@" in the root $1. $2: ro or rw; $3: QEMU for programs of arm64, or nothing.
ENTER = r"""
set -e
root=$1 mode=$2 emulator=$3; shift 3
if [ -n "$emulator" ]; then
    mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
    printf '%s%s%s' \
        ':arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00' \
        ':\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff' \
        ":$emulator:FP" > /proc/sys/fs/binfmt_misc/register
fi
mount --bind "$root" "$root"
mount -o "remount,bind,$mode" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/tmp"
exec chroot "$@"
"""


def missing(*commands: str) -> str:
    """Why there can be no such root here; "" if it can be."""
    if os.name != "posix" or os.geteuid() != 0:
        return "chroot is for root"
    if not CERTIFICATES.exists():
        return f"there is no {CERTIFICATES}"
    lacking = [name for name in ("debootstrap", "unshare", *commands) if not shutil.which(name)]
    return f"there is no {lacking[0]}" if lacking else ""


class DebianRoot(Struct, frozen=True):
    path: Path
    emulator: str = ""  # QEMU, for a root of arm64

    def run(self, script: str, **how: str) -> str:
        """What the shell writes that runs it there; keywords as for `command`."""
        done = subprocess.run(**self.command(script, **how), capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def started(self, script: str, log: Path, **how: str) -> Iterator[subprocess.Popen[str]]:
        """The shell that runs it there until the block ends, with all that it has started."""
        with log.open("w") as file:
            command = self.command(script, **how)
            process = subprocess.Popen(**command, stdout=file, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def command(
        self, script: str, *, user: str = "root", folder: str = "/", mode: str = "rw", **env: str
    ) -> dict[str, Any]:
        """Arguments for `subprocess`. ``mode`` is what the root is mounted as, ro or rw; ``env``
        are variables beside those that every process has there."""
        namespaces = ["--mount", "--pid", "--fork", "--kill-child"]
        if self.emulator:
            namespaces += ["--user", "--map-root-user"]
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        args = [
            "unshare", *namespaces, "sh", "-c", ENTER, "sh", self.path, mode, self.emulator,
            *([] if user == "root" else [f"--userspec={user}:{user}"]), self.path,
            "sh", "-c", f"cd {shlex.quote(folder)}\n{script}",
        ]  # fmt: skip
        env = {**pip, "PIP_CERT": f"/{THEIR_COPY}", "PATH": PATH, "HOME": f"/home/{user}", **env}
        return {"args": args, "env": env, "text": True}

    def copy_checkout(self, target: str) -> None:
        """What a build of the package takes of this checkout, without what builds have left."""
        (self.path / target.lstrip("/")).mkdir(parents=True)
        for name in CHECKOUT:
            self.copy(ROOT / name, f"{target}/{name}")

    def copy(self, source: Path, target: str) -> None:
        """A file or a folder of this machine to a path of that one."""
        to = self.path / target.lstrip("/")
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, to, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, to)


def debian_root(path: Path, packages: Sequence[str]) -> DebianRoot:
    """A minimal Debian with these packages beside."""
    bootstrap(path, packages)
    take_network(path)
    return DebianRoot(path)


def arm_root(path: Path, packages: Sequence[str], emulator: str) -> DebianRoot:
    """The same for arm64. Its packages are only laid out: to set them up, as their scripts would,
    takes emulated minutes, and Python and PoCL work without."""
    bootstrap(path, packages, "--foreign", "--arch=arm64")
    for package in sorted(path.glob("var/cache/apt/archives/*.deb")):
        subprocess.run(["dpkg-deb", "--extract", package, path], check=True)
    take_network(path)
    return DebianRoot(path, emulator)


def bootstrap(path: Path, packages: Sequence[str], *options: str) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", *options]
    subprocess.run([*command, SUITE, path], check=True, stdout=subprocess.DEVNULL)


def take_network(path: Path) -> None:
    """What a root needs of this machine's /etc; what was fetched to make it goes."""
    for name in FROM_THE_HOST:
        shutil.copy(Path("/etc", name), path / "etc")
    shutil.copy(CERTIFICATES, path / THEIR_COPY)
    for fetched in [*path.glob("var/cache/apt/**/*.deb"), *path.glob("var/lib/apt/lists/*_*")]:
        fetched.unlink()
