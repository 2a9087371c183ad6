"""The steps of the Dockerfile, without an engine for them: in a root of Debian's, by chroot.

debootstrap makes what stands for the base image; the server runs there as in a container: the first
of its processes, without rights, with a root that cannot be written.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_root import ROOT, DebianRoot, debian_root, missing

from gguf_serve.server.demo import demo_model

PACKAGES = ("python3", "python3-pip", "ca-certificates")
MOST_BYTES = 900 * 10**6
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

    def __init__(self, root: DebianRoot) -> None:
        self.root = root
        self.user, self.folder = "root", "/"
        self.environment: dict[str, str] = {}

    def carry_out(self, name: str, arguments: str) -> None:
        if name == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                self.root.copy(ROOT / source, f"{self.folder}/{target}")
        elif name == "RUN":
            self.run(arguments)
        elif name in ("ENV", "ARG"):
            key, _, value = arguments.partition("=")
            self.environment[key] = value
        elif name == "USER":
            self.user = arguments
        elif name == "WORKDIR":
            self.folder = arguments
            (self.root.path / arguments[1:]).mkdir(parents=True, exist_ok=True)

    def run(self, script: str, mode: str = "rw") -> str:
        """Have the shell run it, as the user; its output."""
        return self.root.run(
            script, user=self.user, folder=self.folder, mode=mode, **self.environment
        )


def as_pythons_image(root: Path) -> None:
    """Python installs into /usr/local, as in Python's own images."""
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for path in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        path.unlink()


def size(root: Path) -> int:
    """Bytes of the files, each counted once."""
    found = (path.lstat() for path in root.rglob("*"))
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in found}.values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(missing() != "", reason=missing())
def test_the_steps_of_the_dockerfile(tmp_path: Path) -> None:
    root = debian_root(tmp_path / "root", PACKAGES)
    as_pythons_image(root.path)
    image = Image(root)
    for name, arguments in instructions((ROOT / "Dockerfile").read_text(encoding="utf-8")):
        image.carry_out(name, arguments)
    assert image.user != "root"
    n_bytes = size(root.path)
    print(f"the image has {n_bytes / 1e6:.0f} MB")
    assert n_bytes < MOST_BYTES
    (root.path / "models").mkdir()
    shutil.copy(demo_model(lambda done, total: None), root.path / "models" / "model.gguf")
    ready = image.run("serve --compile-only -m /models/model.gguf")  # as an image's build may do
    assert " programs are ready" in ready
    assert image.run(SERVED, mode="ro") == "healthy\n"


def test_instructions_are_read() -> None:
    text = "# a comment\nFROM x\nRUN a \\\n# in between\n  && b\n\nUSER serve\n"
    found = [(name, " ".join(arguments.split())) for name, arguments in instructions(text)]
    assert found == [("FROM", "x"), ("RUN", "a && b"), ("USER", "serve")]
