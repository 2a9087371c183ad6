"""What a start imports: modules and classes that it does not need cost every start."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# What is there when a model is served: the command, what it begins first, the server, the engine.
STARTED = """
import dataclasses, json, sys

made = []
process = dataclasses._process_class
dataclasses._process_class = lambda cls, *how: made.append(cls.__module__) or process(cls, *how)

import gguf_serve.server.cli, gguf_serve.engine.ahead, gguf_serve.server.launch
import gguf_serve.engine.engine

print(json.dumps([list(sys.modules), [name for name in made if name.startswith("gguf_serve")]]))
"""
# Where a request asks for them: pictures and sounds, documents, downloads, statistics.
LATER = (
    "PIL", "soundfile", "soxr", "pypdf", "markdown_it", "pygments", "latex2mathml", "nh3", "httpx",
    "huggingface_hub", "tqdm", "requests", "prometheus_client", "jinja2", "click.shell_completion",
    "gguf_serve.engine.encoders.families", "gguf_serve.server.doctor.command",
)  # fmt: skip
MOST_MODULES = 510  # of others; ours grow with what there is
MOST_DATACLASSES = 15  # 0.5 ms each: for fields with metadata


@pytest.fixture(scope="module")
def started() -> tuple[list[str], list[str]]:
    """The modules that have been imported, and those of the package that made a dataclass."""
    command = [sys.executable, "-c", STARTED]
    modules, made = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return modules, made


def test_modules_that_a_start_needs(started: tuple[list[str], list[str]]) -> None:
    modules, _ = started
    early = [name for name in LATER if name in modules]
    assert not early, f"a start imports {', '.join(early)}"
    others = [name for name in modules if not name.startswith("gguf_serve")]
    assert len(others) <= MOST_MODULES


def test_classes_that_hold_values_are_structs(started: tuple[list[str], list[str]]) -> None:
    _, made = started
    assert len(made) <= MOST_DATACLASSES, f"dataclasses of {', '.join(made)}"
