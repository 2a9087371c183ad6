"""The memory that a start and an answer take, of a model of SmolLM2's size: bench_start.py."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bench_start import Start, start
from model_shapes import llama
from synthetic_model import write_model

from gguf_serve.kernels.opencl.drivers import bundled_drivers

SPARE = 60  # MiB, for a driver of which nobody knows


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the programs are in the cache or not: what compiles them counts while it is there.
    Times are for scripts/bench_start.py, on a machine that does nothing else."""
    drivers = bundled_drivers()
    if not drivers:
        pytest.skip("Intel's driver is not there")
    folder = tmp_path / "drivers"  # without PoCL's libraries
    folder.mkdir()
    (folder / "intel.icd").write_text(f"{drivers[0]}\n")
    monkeypatch.setenv("OPENCL_VENDOR_PATH", str(folder))
    path = tmp_path / "model.gguf"
    write_model(path, llama(layers=8, embd=1024, heads=16, kv_heads=8, ff=4096, vocab=32000))
    found = start(path, ["-c", "4096"], watched=True)
    assert found.excess(SPARE) == []
    assert found.weights > 80
    assert min(found.resident, found.peak, found.answered) > 100  # it has been measured


def test_what_is_too_much() -> None:
    one = Start(1.0, 1.0, resident=460, peak=575, answered=460, weights=100, kv=100, log="")
    assert one.excess() == []
    assert one.excess(-1) == [
        "when ready: 460 MiB, more than 459 MiB",
        "while loading: 575 MiB, more than 574 MiB",
        "after an answer: 460 MiB, more than 459 MiB",
    ]
    assert len(replace(one, peak=576).excess()) == 1
