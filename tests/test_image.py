"""The steps of the Dockerfile, without an engine for them: in a root of Debian's, by chroot.

debootstrap makes what stands for the base image. What a container has beside (its own processes,
a root that cannot be written, a user without rights) is made by unshare and mount.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gguf_serve.server.demo import demo_model

ROOT = Path(__file__).resolve().parents[1]
SUITE = "trixie"
PACKAGES = "python3,python3-pip,ca-certificates"
# Of /etc: what engines copy, and whom this machine's network is to be trusted by.
FROM_THE_HOST = ("resolv.conf", "hosts", "ssl/certs/ca-certificates.crt")
MOST_BYTES = 900 * 10**6
# Runs "$@" in the root $1, with processes of its own; $2: ro or rw.
CONTAINER = """
set -e
root=$1 mode=$2; shift 2
mount --bind "$root" "$root"
mount -o "remount,bind,$mode" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/tmp"
exec chroot "$@"
"""
# The server is the first process, as in a container, and its health check tells when it is up.
SERVED = """
( for i in $(seq 300); do
    if python -m gguf_serve.server.container.health_check; then echo healthy; break; fi
    sleep 1
  done
  kill 1 ) &
exec serve -m /models/model.gguf --port 8123 --api-prefix /v
"""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The lines of a Dockerfile, continued ones joined, as an instruction and its arguments."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, arguments = line.strip().partition(" ")
            yield name, arguments.strip()


class Image:
    """A root file system in which instructions are carried out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.user, self.folder = "root", "/"
        self.environment: dict[str, str] = {}
        self.entrypoint: list[str] = []

    def carry_out(self, name: str, arguments: str) -> None:
        if name == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                self.copy(ROOT / source, target)
        elif name == "RUN":
            self.run(arguments)
        elif name in ("ENV", "ARG"):
            key, _, value = arguments.partition("=")
            self.environment[key] = value
        elif name == "USER":
            self.user = arguments
        elif name == "WORKDIR":
            self.folder = arguments
            (self.root / arguments[1:]).mkdir(parents=True, exist_ok=True)

    def copy(self, source: Path, target: str) -> None:
        to = self.root / self.folder[1:] / target
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, to, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, to)

    def run(self, script: str, mode: str = "rw") -> str:
        """Have the shell run it, as the user; its output."""
        pip = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
        paths = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        environment = {**pip, **paths, "HOME": f"/home/{self.user}", **self.environment}
        command = [
            "unshare", "--mount", "--pid", "--fork", "sh", "-c", CONTAINER, "sh", self.root, mode,
            f"--userspec={self.user}:{self.user}", self.root,
            "sh", "-c", f"cd {shlex.quote(self.folder)}\n{script}",
        ]  # fmt: skip
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


def base_image(root: Path) -> None:
    """Debian with a Python that installs into /usr/local, as in Python's own images."""
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, root],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    as_in_the_image(root)


def as_in_the_image(root: Path) -> None:
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for path in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        path.unlink()
    for name in FROM_THE_HOST:
        shutil.copy(Path("/etc", name), root / "etc" / name)
    for path in [*root.glob("var/cache/apt/**/*.deb"), *root.glob("var/lib/apt/lists/*_*")]:
        path.unlink()


def size(root: Path) -> int:
    """Bytes of the files, each counted once."""
    found = (path.lstat() for path in root.rglob("*"))
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in found}.values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="chroot is for root")
@pytest.mark.skipif(shutil.which("debootstrap") is None, reason="there is no debootstrap")
def test_the_steps_of_the_dockerfile(tmp_path: Path) -> None:
    root = tmp_path / "root"
    base_image(root)
    check(root)


def check(root: Path) -> None:
    image = Image(root)
    for name, arguments in instructions((ROOT / "Dockerfile").read_text(encoding="utf-8")):
        image.carry_out(name, arguments)
    assert image.user != "root"
    n_bytes = size(root)
    print(f"the image has {n_bytes / 1e6:.0f} MB")
    assert n_bytes < MOST_BYTES
    (root / "models").mkdir()
    shutil.copy(demo_model(lambda done, total: None), root / "models" / "model.gguf")
    ready = image.run("serve --compile-only -m /models/model.gguf")  # as an image's build may do
    assert " programs are ready" in ready
    assert image.run(SERVED, mode="ro") == "healthy\n"


def test_instructions_are_read() -> None:
    text = "# a comment\nFROM x\nRUN a \\\n# in between\n  && b\n\nUSER serve\n"
    found = [(name, " ".join(arguments.split())) for name, arguments in instructions(text)]
    assert found == [("FROM", "x"), ("RUN", "a && b"), ("USER", "serve")]
