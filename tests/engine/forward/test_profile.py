"""The profile of a model: which steps, what is counted, and that it leaves the model as it was."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stepping import Stepper, sequence

from gguf_serve.engine.forward.profile import (
    TypicalStep,
    profile,
    report,
    short_name,
    typical_steps,
)
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels import profile as measuring
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import Launch
from gguf_serve.kernels.opencl.work import NO_WORK, Work
from gguf_serve.kernels.profile import Limits, StepTimes

LIMITS = Limits(bytes_per_second=10e9, macs_per_second=100e9)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "READ_BYTES", 8 << 20)
    monkeypatch.setattr(measuring, "BUDGET_SECONDS", 0.0)


def test_steps_of_a_large_context() -> None:
    assert typical_steps(8192, 512, 512) == [
        TypicalStep("one token after 64", [(64, 1)]),
        TypicalStep("8 sequences, one token each after 64", [(64 + i, 1) for i in range(8)]),
        TypicalStep("one token after 4095", [(4095, 1)]),
        TypicalStep("prompt of 512", [(0, 512)]),
    ]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 3, 2), (70, 512, 4), (100, 64, 64)])
def test_steps_fit_small_sizes(sizes: tuple[int, int, int]) -> None:
    n_ctx, n_tokens, n_outputs = sizes
    for step in typical_steps(*sizes):
        assert len(step.spans) <= n_outputs
        assert 1 <= sum(n for _, n in step.spans) <= n_tokens
        assert all(at >= 0 and at + n <= n_ctx for at, n in step.spans)


@pytest.mark.parametrize(
    ("label", "short"),
    [
        ("matmul(ACT_INT TYPE_Q4_1 ADD NT=1)", "matmul int Q4_1 ADD NT1"),
        ("segments(CAPACITY=512)", "segments"),
        ("attention(HD=64 PAGE=32 SPLIT)", "attention HD64 SPLIT"),
    ],
)
def test_short_names(label: str, short: str) -> None:
    assert short_name(label) == short


def test_a_report_in_numbers() -> None:
    def launch(name: str, work: Work) -> Launch:
        return Launch(None, (1,), (1,), name, work)

    matrix = launch("matmul(TYPE_Q8_0)", Work(weight_bytes=4_000_000, macs=10_000_000))
    attention = launch("attention()", Work(key_bytes=100_000, pair_macs=50_000))
    times = StepTimes(0.004, (
        (matrix, 0.001), (launch("norm()", NO_WORK), 0.0005), (attention, 0.0005),
        (matrix, 0.001),
    ))  # fmt: skip
    lines = list(report(TypicalStep("a step", [(9, 1)]), times, (1, 1, 1, 1), LIMITS))
    assert lines[:2] == [
        "a step: 4.00 ms, 4 launches (3.00 ms inside kernels)",
        "  weights 8.0 MB, KV 1.0 MB: 22% of the memory's limit; "
        "0.02 GMAC: 5% of the multiply-adds'",
    ]
    rows = [line.split() for line in lines[3:]]
    assert rows[0] == ["2.00", "66.7%", "2", "1000.0", "4.0", "10.0", "matmul", "Q8_0"]
    assert sorted(rows[1:]) == [
        ["0.50", "16.7%", "1", "500.0", "2.0", "1.0", "attention"],
        ["0.50", "16.7%", "1", "500.0", "norm"],
    ]


def test_a_model_is_profiled_and_stays_as_it_was(
    conformance_model: Callable[[str], Path], device: Device, programs: Programs
) -> None:
    stepper = Stepper(conformance_model("llama-dense"), device, programs)
    tokens = range(20, 50)
    before = stepper.run(sequence(tokens, 0, [2, 3]), [30])
    text = "\n".join(profile(stepper.runner, typical_steps(256, 96, 96)))
    after = stepper.run(sequence(tokens, 0, [2, 3]), [30])
    assert np.array_equal(before, after)
    assert re.match(r"limits: memory [\d.]+ GB/s read, \d+ GMAC/s \((simd|simt)\)\n\none tok", text)
    megabytes = f"weights {stepper.runner.token_bytes / 1e6:.1f} MB"
    assert text.count(megabytes) == len(typical_steps(256, 96, 96))
    assert "matmul" in text
    assert "attention" in text


def test_a_model_that_does_not_generate_has_prompts_only() -> None:
    steps = typical_steps(256, 96, 96, generates=False)
    assert [(step.name, step.spans) for step in steps] == [
        ("3 prompts of 32", [(0, 32)] * 3), ("prompt of 96", [(0, 96)])
    ]  # fmt: skip
    (few, _) = typical_steps(256, 20, 20, generates=False)
    assert (few.name, few.spans) == ("1 prompts of 20", [(0, 20)])


@pytest.mark.parametrize("model", ["llama-dense", "bert"])
def test_the_loader_logs_it_if_asked(
    conformance_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture, model: str
) -> None:
    if not list_devices():
        pytest.skip("no OpenCL device")
    caplog.set_level(logging.INFO)
    path = conformance_model(model)
    for wanted in (False, True):
        load_model(path, EngineOptions(profile=wanted), lambda share: None)
        assert ("prompt of" in caplog.text) is wanted
