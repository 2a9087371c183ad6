"""The README from its top, on a machine that has nothing but Python: an answer in a browser."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from browsing import Opened, chromium
from debian_root import ROOT, DebianRoot, debian_root, missing
from listening import free_port, wait_until_up

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECONDS = 1800  # for a download of 400 MB, and compiling


def first(language: str) -> str:
    """The first block of this language in the README."""
    found = re.search(rf"^```{language}\n(.*?)^```", README, re.M | re.S)
    assert found is not None
    return found[1]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(missing() != "", reason=missing())
def test_the_first_command(tmp_path: Path) -> None:
    """As it stands there, but for the port; then the page, and the example in Python."""
    root, log, port = debian_root(tmp_path / "root", ["python3"]), tmp_path / "log", free_port()
    prepare(root)
    url = f"http://127.0.0.1:{port}"
    with root.started(
        first("sh"), log, folder="/root/gguf-serve", LLAMA_ARG_PORT=str(port)
    ) as process:
        wait_until_up(url, process, log, SECONDS)
        with chromium() as browser:
            opened = Opened(browser, url)
            opened.ask("What is the capital of France?")
            assert len(opened.answer.inner_text()) > 10
            assert opened.faults == []
        example = first("python").replace("http://127.0.0.1:8080", url)
        said = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True)
        assert "Paris" in said.stdout, said.stderr


def prepare(root: DebianRoot) -> None:
    """What the text above that command says is needed."""
    needed = re.search(r"`(apt-get install python3-venv)`", README)
    assert needed is not None
    root.run(f"apt-get update -qq && {needed[1]} -y -qq --no-install-recommends")
    root.copy_checkout("/root/gguf-serve")
