"""What a step costs by its number of tokens: scripts/bench_widths.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench_widths import Width, as_json, cells, measure
from stepping import Stepper

from gguf_serve.kernels.opencl.device import open_device
from gguf_serve.kernels.opencl.program import Programs


def test_steps_of_one_sequence_and_of_streams(conformance_model: Callable[[str], Path]) -> None:
    device = open_device(None)
    runner = Stepper(conformance_model("llama-dense"), device, Programs(device)).runner
    times = measure(runner, (1, 3), 60, seconds=0)
    steps = [Width(1), Width(1, True), Width(3), Width(3, True)]
    assert list(times) == steps
    assert all(len(found) == 3 and min(found) > 0 for found in times.values())


def test_what_a_step_is_of() -> None:
    chunks, rows = Width(4).inputs(60)
    assert [(chunk.start, chunk.count, chunk.outputs) for chunk in chunks] == [(60, 4, "all")]
    assert [row.position for row in rows] == [60, 61, 62, 63]
    chunks, rows = Width(3, streams=True).inputs(64)
    assert [(chunk.seq.slot, chunk.start, chunk.count) for chunk in chunks] == [
        (0, 64, 1), (1, 64, 1), (2, 64, 1)
    ]  # fmt: skip
    assert len({page for chunk in chunks for page in chunk.seq.table}) == 9
    assert [row.position for row in rows] == [64, 64, 64]


def test_the_table() -> None:
    times = {
        Width(1): [0.011, 0.010, 0.013], Width(1, True): [0.020, 0.010],
        Width(4): [0.016, 0.015], Width(4, True): [0.014],
    }  # fmt: skip
    assert cells(times)[1:] == [
        ["1", "10.0 (11.0)", "1.00", "10.0 (15.0)", "1.00"],
        ["4", "15.0 (15.5)", "1.50", "14.0 (14.0)", "1.40"],
    ]
    assert as_json(times)[3] == {"tokens": 4, "streams": True, "seconds": [0.014]}
