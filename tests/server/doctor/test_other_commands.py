"""Other packages' commands of the same name are noticed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from gguf_serve.server import launch
from gguf_serve.server.doctor import other_commands
from gguf_serve.server.doctor.other_commands import is_ours, notices

OURS = "#!/bin/python\nfrom gguf_serve.server.cli import main\n"
RAYS = "#!/bin/python\nfrom ray.serve.scripts import cli\n"


@pytest.mark.parametrize(
    ("script", "owners", "words"),
    [
        (OURS, ["gguf-serve"], None),
        (None, ["gguf-serve"], None),
        (RAYS, ["gguf-serve", "ray"], " is another program of ray: type gguf-serve instead"),
        (RAYS, ["gguf-serve"], " is another program: type gguf-serve instead of serve"),
        (OURS, ["gguf-serve", "ray"], "pip install --force-reinstall --no-deps ray gives it back"),
    ],
)
def test_notices(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str | None,
    owners: list[str],
    words: str | None,
) -> None:
    if script is not None:
        (tmp_path / "serve").write_text(script)
        (tmp_path / "serve").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    entries = [SimpleNamespace(dist=SimpleNamespace(name=name)) for name in owners]
    monkeypatch.setattr(other_commands, "entry_points", lambda **wanted: entries)
    found = notices()
    assert len(found) == (words is not None)
    if words is not None:
        assert words in found[0]
        assert str(tmp_path / "serve") in found[0]


def test_a_command_that_cannot_be_read_is_not_ours(tmp_path: Path) -> None:
    assert not is_ours(str(tmp_path))


def test_a_start_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(launch, "summary", lambda *args: [])
    monkeypatch.setattr(launch.other_commands, "notices", lambda: ["serve is another's"])
    launch.greet(SimpleNamespace(), "model", [])  # type: ignore[arg-type]
    assert caplog.messages == ["serve is another's"]
