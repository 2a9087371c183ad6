"""Measuring: how fast the device can read and multiply, and how long recorded launches take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import pyopencl as cl
from msgspec import Struct

from gguf_serve.kernels.attention.kv import KVPages
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import Counts, Launch, Tape
from gguf_serve.kernels.opencl.tensor import empty

READ_BYTES = 512 << 20  # well over any cache that the system shares with others
REPEATS = 5
BUDGET_SECONDS = 0.4  # for the repetitions of one step
MOST_RUNS = 20


class Limits(Struct, frozen=True):
    """What the device did when it did nothing else."""

    bytes_per_second: float
    macs_per_second: float


class StepTimes(Struct, frozen=True):
    """seconds: of a step from its first launch to its end; launches: of each, by the device."""

    seconds: float
    launches: tuple[tuple[Launch, float], ...]


def measure_limits(device: Device, programs: Programs) -> Limits:
    """Memory read bandwidth and multiply-adds per second.

    The multiply-adds are those of lanes.cl (two 16-bit products added to an int) in the simd
    family and of floats in the simt family.
    """
    return Limits(read_bandwidth(device, programs), _multiply_rate(device, programs))


def read_bandwidth(device: Device, programs: Programs) -> float:
    """Bytes per second of reading a buffer once, the best of a few times."""
    cpu = device.info.kind == "cpu"
    width, local = (64, 1) if cpu else (16, min(256, device.capabilities.work_group))
    n_items = device.info.compute_units * (16 if cpu else 2048)
    room = min(READ_BYTES, device.max_allocation, device.info.memory_bytes // 8)
    n_each = max(room // (n_items * width * 4), 1) * 4
    n_bytes = n_items * n_each * width
    memory = empty(device, (n_bytes,), np.uint8)
    # Untouched pages would all be one page of zeros.
    cl.enqueue_fill_buffer(device.queue, memory.buffer, np.ones(1, np.uint32), 0, n_bytes)
    first, stride = (n_each, 1) if cpu else (1, n_items)
    arguments = {
        "x": memory, "n": n_each, "first": first, "stride": stride,
        "out": empty(device, (n_items, width), np.uint8),
    }  # fmt: skip
    kernel = programs.bound("limits.cl", "read_memory", arguments, _defines(device))
    seconds = _best(device, kernel, n_items, local)
    memory.buffer.release()
    return n_bytes / seconds


def _multiply_rate(device: Device, programs: Programs) -> float:
    if device.is_simd:
        lanes, n = 32, 1 << 20
        n_items, local = device.info.compute_units * 4, 1
    else:
        lanes, n = 1, 4096
        n_items, local = device.info.compute_units * 2048, min(256, device.capabilities.work_group)
    arguments = {"n": n, "x": 0.5, "y": 0.25, "out": empty(device, (n_items, 16))}
    kernel = programs.bound("limits.cl", "multiply_add", arguments, _defines(device))
    return _chains(device) * lanes * n * n_items / _best(device, kernel, n_items, local)


def _defines(device: Device) -> list[str]:
    return [f"CHAINS={_chains(device)}", *(["WIDE"] if device.info.kind == "cpu" else [])]


def _chains(device: Device) -> int:
    """Sums side by side: an instruction's latency times how many start in a cycle."""
    if not device.is_simd:
        return 8
    return 10 if any(define.endswith("_512") for define in device.defines) else 5


def _timing_queue(device: Device) -> Any:
    device.finish()
    flags = cl.command_queue_properties.PROFILING_ENABLE
    return cl.CommandQueue(device.context, properties=flags)


def _seconds(event: Any) -> float:
    return float(event.profile.end - event.profile.start) * 1e-9


def _best(device: Device, kernel: Any, n_items: int, local: int) -> float:
    queue = _timing_queue(device)
    enqueue = cl.enqueue_nd_range_kernel
    events = [enqueue(queue, kernel, (n_items,), (local,)) for _ in range(REPEATS)]
    queue.finish()
    return min(_seconds(event) for event in events)


def time_step(tape: Tape, counts: Counts) -> StepTimes:
    """Medians of several runs of a tape, whose inputs must hold for a step of these counts."""
    _run_plain(tape, counts)  # some drivers compile no sooner than this
    (seconds,) = _medians(lambda: [_run_plain(tape, counts)])
    sized = [(launch, launch.global_size(counts)) for launch in tape.launches]
    sized = [(launch, size) for launch, size in sized if 0 not in size]
    queue = _timing_queue(tape.device)
    times = _medians(lambda: _run_timed(queue, sized))
    return StepTimes(seconds, tuple(zip((launch for launch, _ in sized), times, strict=True)))


def _medians(run: Callable[[], list[float]]) -> list[float]:
    """Of the seconds that runs return, for as long as there is time."""
    runs = [run()]
    while sum(map(sum, runs)) < BUDGET_SECONDS and len(runs) < MOST_RUNS:
        runs.append(run())
    return [median(times) for times in zip(*runs, strict=True)]


def _run_plain(tape: Tape, counts: Counts) -> float:
    tape.device.finish()
    start = time.perf_counter()
    tape.run(counts)
    tape.device.finish()
    return time.perf_counter() - start


def _run_timed(queue: Any, sized: Sequence[tuple[Launch, tuple[int, ...]]]) -> list[float]:
    enqueue = cl.enqueue_nd_range_kernel
    events = [enqueue(queue, x.kernel, size, x.local_size(size)) for x, size in sized]
    queue.finish()
    return [_seconds(event) for event in events]


def touch_pages(device: Device, pages: KVPages, n_pages: int) -> None:
    """Write ones to the first pages of every layer, as far as it has them: unwritten memory may
    take none at all."""
    for layer in pages.layers:
        for kept in (layer.k, layer.v):
            for page in range(min(n_pages, kept.n_pages)) if kept.n_bytes else ():
                buffer, at = kept.place(page)
                one = np.ones(1, np.uint8)
                cl.enqueue_fill_buffer(device.queue, buffer, one, at, kept.page_bytes)
    device.finish()
