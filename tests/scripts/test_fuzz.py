"""What fuzzing calls, on its seeds, on what has found a fault once, and on mutations of both."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz_targets import TARGETS, corpus

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz.py"
N_MUTATIONS = 200  # of each target, every day


def known(name: str) -> list[bytes]:
    return [*TARGETS[name].seeds(), *corpus(name).values()]


@pytest.mark.parametrize(("name", "file"), [(n, f) for n in TARGETS for f in corpus(n)])
def test_what_has_found_a_fault_finds_none(name: str, file: str) -> None:
    TARGETS[name](corpus(name)[file])


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken(name: str) -> None:
    """They reach the end of what is fuzzed, or mutations of them would reach nothing."""
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_mutations(name: str) -> None:
    for data in mutated(known(name), TARGETS[name].words, N_MUTATIONS):
        TARGETS[name](data)


def mutated(seeds: list[bytes], words: tuple[bytes, ...], n: int) -> Iterator[bytes]:
    """Bytes that are changed, cut, repeated, or come from elsewhere; the same ones every time."""
    rng = random.Random(1)
    for _ in range(n):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 8)):
            at = rng.randrange(len(data) + 1)
            kind = rng.randrange(5)
            if kind == 0 and at < len(data):
                data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            elif kind == 1:
                del data[at : at + rng.randint(1, 16)]
            elif kind == 2:
                data[at:at] = rng.choice(words) if words else rng.randbytes(8)
            elif kind == 3:
                data[at:at] = data[at : at + rng.randint(1, 64)]
            else:
                other = rng.choice(seeds)
                data[at:] = other[at:]
        yield bytes(data)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("name", TARGETS)
def test_a_minute_guided_by_coverage(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), name, "--seconds", "60", "--findings", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Done " in result.stderr
