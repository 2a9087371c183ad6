"""What may happen to the folder while it is used: damage, kills, its end, its limit."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from asking import DISK, N_TOKENS, SECONDS, ask, disk, forget, kept, random_prompt

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.options import EngineOptions

# A server that is killed: it answers prompts of ever new seeds, and says what.
WRITER = f"""
import json, sys
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from asking import ask, engine_of, random_prompt
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.serving.disk import disk_options
from asking import DISK
from dataclasses import replace
options = replace(DISK, cache_disk=sys.argv[2])
model = load_model(Path(sys.argv[1]), options, lambda share: None)
engine = engine_of(model, disk=disk_options(options))
for seed in range(int(sys.argv[3]), 1 << 30):
    print(json.dumps([seed, ask(engine, random_prompt({N_TOKENS}, seed), 4).tokens]), flush=True)
"""


@pytest.fixture
def private(
    start_engine: Callable[[str, EngineOptions], Engine], tmp_path: Path
) -> Callable[..., Engine]:
    """Starts an engine with a folder of the test's own, ``tmp_path / "kv"``."""

    def started(**changes: object) -> Engine:
        options = replace(DISK, cache_disk=str(tmp_path / "kv"), **changes)
        engine = start_engine("llama-dense", options)
        assert engine._disk is not None
        engine._disk._loads._speed = lambda: 0.0
        return engine

    return started


@pytest.mark.parametrize("n_bits", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_flipped_bits(engine: Engine, folder: Path, n_bits: int) -> None:
    """Anywhere in a file: it is found, deleted, counted and written again, and nobody gets a
    token that is not the model's."""
    generator, n_corrupt = random.Random(n_bits), disk(engine).n_corrupt
    before = set(folder.glob("*.kv"))
    prompt = kept(engine, 60 + n_bits)
    files = sorted(set(folder.glob("*.kv")) - before)
    expected = ask(engine, prompt, 4, cache_prompt=False).tokens
    for i in range(n_bits):
        forget(engine)
        file = generator.choice(files)
        raw = bytearray(file.read_bytes())
        raw[generator.randrange(len(raw))] ^= 1 << generator.randrange(8)
        file.write_bytes(raw)
        reply = ask(engine, prompt, 4)
        assert (reply.tokens, reply.n_cached < 320) == (expected, True)
        assert engine.wait_until_kept(SECONDS)
        assert disk(engine).n_corrupt == n_corrupt + i + 1


def test_a_folder_that_goes_away(
    private: Callable[..., Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody fails, and one warning says so."""
    engine = private()
    prompt = kept(engine, 1)
    expected = ask(engine, prompt, 4).tokens
    assert engine.wait_until_kept(SECONDS)  # or it makes a file while the folder is removed
    shutil.rmtree(tmp_path / "kv")
    forget(engine)
    for seed in (1, 2, 3):
        reply = ask(engine, random_prompt(N_TOKENS, seed), 4)
        assert (reply.end.reason, reply.n_cached) == ("limit", 0)
        assert seed > 1 or reply.tokens == expected
        assert not engine.wait_until_kept(SECONDS)
    assert [record.levelname for record in caplog.records if "--cache-disk" in record.message] == [
        "WARNING"
    ]
    assert disk(engine).n_corrupt == 0


def test_random_chats_of_ten_times_the_limit(private: Callable[..., Engine]) -> None:
    """The limit holds at any time, and the system prompt of all of them stays."""
    engine = private(cache_disk_mib=1)
    system = random_prompt(160, 1)
    ask(engine, [*system, *random_prompt(170, 2)], 1)
    assert engine.wait_until_kept(SECONDS)
    n_bytes = disk(engine).n_bytes / disk(engine).n_files
    n_chats, seed = 10 * (1 << 20) // int(5 * n_bytes), 2
    for seed in range(3, 3 + n_chats):
        forget(engine)
        reply = ask(engine, [*system, *random_prompt(170, seed)], 1)
        assert reply.n_cached == 160
        assert engine.wait_until_kept(SECONDS)
        assert disk(engine).n_bytes <= 1 << 20
    assert disk(engine).n_written * n_bytes > 10 << 20
    assert disk(engine).n_evicted > 0


@pytest.mark.parametrize("n_times", [1, pytest.param(30, marks=pytest.mark.slow)])
def test_servers_that_are_killed(
    private: Callable[..., Engine],
    conformance_model: Callable[[str], Path],
    tmp_path: Path,
    n_times: int,
) -> None:
    """At random moments of writing: the next one starts, finds what was written, takes nothing
    that is half, and answers as ever."""
    path, generator = conformance_model("llama-dense"), random.Random(n_times)
    answers = dict[int, list[int]]()
    for i in range(n_times):
        arguments = [str(path), str(tmp_path / "kv"), str(1000 * i), *sys.path]
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        with process:
            assert process.stdout is not None
            answers.update([json.loads(process.stdout.readline())])
            time.sleep(generator.uniform(0.0, 0.3))
            process.kill()
            lines = process.stdout.read().splitlines(keepends=True)
        answers.update(json.loads(line) for line in lines if line.endswith("\n"))
    engine = private()
    for seed, tokens in answers.items():
        assert ask(engine, random_prompt(N_TOKENS, seed), 4).tokens == tokens
    stats = disk(engine)
    assert stats.n_corrupt == 0
    assert n_times == 1 or stats.n_hit_tokens > 0  # one may be killed before it has written
    assert engine.wait_until_kept(SECONDS)
    assert not list((tmp_path / "kv").glob("*.part"))
