"""What is reckoned is what is allocated, and what does not fit is shrunk or refused."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.architecture.table import find_architecture
from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.forward.batch import MediaShape
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.loading.assembly import CacheTypes, assemble, sizes_of
from gguf_serve.engine.loading.fit import (
    CONTEXT_STEP,
    Fitting,
    Machine,
    Outline,
    Trial,
    needs,
    outline,
    rehearse,
)
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.model.placement import Placement
from gguf_serve.engine.model.weights import Additions, allocate_weights
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.platforms import DeviceError, DeviceInfo, list_devices
from gguf_serve.kernels.opencl.program import Programs

MIB = 1 << 20
GPU, CPU = 0, 1
Read = Callable[[str], Outline]
TRAINED = 1 << 16


@pytest.fixture(scope="session")
def processor() -> Device:
    infos = [info for info in list_devices() if info.kind == "cpu"]
    if not infos:
        pytest.skip("no OpenCL device for CPUs")
    return open_device(str(infos[-1].index))


@pytest.fixture(scope="session")
def read(processor: Device, conformance_model: Callable[[str], Path]) -> Read:
    """A model that was trained with 65536 tokens of context."""

    @cache
    def outlined(name: str) -> Outline:
        with open_gguf(conformance_model(name)) as gguf:
            h = read_hyperparameters(gguf, find_architecture(gguf.architecture))
            return outline(gguf, replace(h, n_ctx_train=TRAINED), processor)

    return outlined


def machine(processor: Device, gpu_bytes: int, cpu_bytes: int, **changes: Any) -> Machine:
    """A GPU and a CPU with so many free bytes."""
    infos = [
        replace(processor.info, name="Fast", index=7, kind="gpu"),
        replace(processor.info, name="Slow", index=8),
    ]
    devices = [replace(processor, info=info) for info in infos]

    def free(info: DeviceInfo) -> int:
        return gpu_bytes if info.kind == "gpu" else cpu_bytes

    return replace(Machine(infos, 1, CPU, (), devices.__getitem__, free), **changes)


def options(**given: Any) -> EngineOptions:
    return EngineOptions(**({"fit_target": (1,)} | given))


@pytest.mark.parametrize("name", ["llama-dense", "deepseek2-moe", "jamba-dense"])
def test_the_estimate_is_what_is_allocated(
    conformance_model: Callable[[str], Path], processor: Device, read: Read, name: str
) -> None:
    n = read(name).h.n_layers
    placement = Placement(0, (0, *(1,) * (n - 1)), (1,) * n, 0)
    devices = [replace(processor, usage=type(processor.usage)()) for _ in range(2)]
    with open_gguf(conformance_model(name)) as gguf:
        h = read_hyperparameters(gguf, find_architecture(gguf.architecture))
        sizes, types = sizes_of(h, EngineOptions(), 4096), CacheTypes("f16", "f32")
        model = read(name)
        rehearsal = rehearse(model, placement, devices, sizes, types, flash=True)
        estimate = needs(model, placement, rehearsal)
        assert [device.usage.n_bytes for device in devices] == [0, 0]
        weights, _ = allocate_weights(gguf, h, devices, placement)
    allocated = [device.usage.n_bytes for device in devices]
    for need, n_bytes in zip(estimate, allocated, strict=True):
        assert need.weights == pytest.approx(n_bytes, rel=0.02)
    placed = [(device, Programs(device)) for device in devices]
    runner = assemble(h, weights, placed, sizes, types, flash=True)
    for need, device, pages in zip(estimate, devices, runner.pages, strict=True):
        assert need.total == pytest.approx(device.usage.n_bytes, rel=0.02)
        assert need.kv == pages.n_bytes


@pytest.mark.parametrize(
    ("n_parallel", "kv_unified", "n_slots", "n_ctx_slot"),
    [(-1, None, 4, 4096), (-1, False, 4, 1024), (2, None, 2, 2048), (2, True, 2, 4096)],
)
def test_the_context_of_a_slot(
    read: Read, n_parallel: int, kv_unified: bool | None, n_slots: int, n_ctx_slot: int
) -> None:
    given = options(n_parallel=n_parallel, kv_unified=kv_unified)
    sizes = sizes_of(read("llama-dense").h, given, 4096)
    assert (sizes.n_slots, sizes.n_ctx_slot) == (n_slots, n_ctx_slot)
    limited = sizes_of(read("llama-dense").h, dataclasses.replace(given, n_ctx_slot=1500), 4096)
    assert limited.n_ctx_slot == min(n_ctx_slot, 1500)


def test_a_limit_of_slots_makes_room_for_all(read: Read, processor: Device) -> None:
    """Without -c; with it the limit alone counts."""
    model, roomy = read("llama-dense"), machine(processor, 4 << 30, 4 << 30)
    for given, n_ctx in (({}, 1024), ({"n_ctx": 4096}, 4096), ({"n_ctx": 0}, TRAINED)):
        limited = options(n_ctx_slot=512, n_parallel=2, **given)
        trial = Fitting(model, limited, roomy).choose()
        assert (trial.n_ctx, trial.sizes.n_ctx_slot) == (n_ctx, 512)


def test_all_of_it_if_it_fits(read: Read, processor: Device) -> None:
    model = read("llama-dense")
    trial = Fitting(model, options(), machine(processor, 4 << 30, 4 << 30)).choose()
    assert (trial.n_ctx, trial.devices, set(trial.placement.parts)) == (TRAINED, (GPU,), {0})


def test_a_context_that_was_not_set_is_shrunk(
    read: Read, processor: Device, caplog: pytest.LogCaptureFixture
) -> None:
    model, caplog.handler.level = read("llama-dense"), logging.INFO
    whole = Fitting(model, options(), machine(processor, 4 << 30, 4 << 30)).choose()
    room = (whole.needs[0].weights + whole.needs[0].scratch) + whole.needs[0].kv // 3 + MIB
    trial = Fitting(model, options(), machine(processor, room, 4 << 30)).choose()
    assert trial.devices == (GPU,)
    assert TRAINED // 4 < trial.n_ctx < TRAINED // 2
    assert trial.needs[0].total + MIB <= room
    larger = sizes_of(model.h, options(), trial.n_ctx + 256)
    assert trial.needs[0].total + kv_bytes(whole, larger.n_pages - trial.sizes.n_pages) + MIB > room
    assert f"a context of {trial.n_ctx} tokens instead of {TRAINED} fits" in caplog.text


def kv_bytes(whole: Trial, n_pages: int) -> int:
    return whole.needs[0].kv // whole.sizes.n_pages * n_pages


def test_the_context_first_then_layers(read: Read, processor: Device) -> None:
    """Weights of the second layer and of the output do not fit the GPU."""
    model = read("llama-dense")
    least = Fitting(model, options(n_ctx=4096), machine(processor, 4 << 30, 4 << 30)).choose()
    room = least.needs[0].total + MIB
    small = machine(processor, room - model.part_bytes[-1], 4 << 30)
    trial = Fitting(model, options(), small).choose()
    assert trial.n_ctx == 4096
    assert trial.devices == (GPU, CPU)
    assert 0 < trial.n_layers <= model.h.n_layers
    assert trial.placement.output == GPU
    assert trial.placement.embedding == CPU


def test_experts_leave_before_layers(read: Read, processor: Device) -> None:
    model = read("qwen3moe-moe")
    given = options(n_ctx=512, n_ubatch=64)
    whole = Fitting(model, given, machine(processor, 4 << 30, 4 << 30)).choose()
    small = machine(processor, whole.needs[0].total + MIB - 1, 4 << 30)
    trial = Fitting(model, given, small).choose()
    assert trial.placement.ffns[0] == CPU
    assert set(trial.placement.mixers) == {GPU}
    fixed = dataclasses.replace(given, n_gpu_layers=99)
    with pytest.raises(EngineError, match="does not fit"):
        Fitting(model, fixed, machine(processor, whole.needs[0].total - 1, 4 << 30)).choose()


@pytest.mark.parametrize("given", [{"n_ctx": 1 << 20}, {"fit_ctx": 1 << 20}])
def test_what_cannot_fit_is_told_in_numbers(
    read: Read, processor: Device, given: dict[str, Any]
) -> None:
    model = read("llama-dense")
    with pytest.raises(EngineError) as caught:
        Fitting(model, options(**given), machine(processor, 8 * MIB, 9 * MIB)).choose()
    number = r"(\d+) MiB"
    match = re.search(
        rf"Slow: weights {number}, KV cache {number}, scratch {number}, together {number}, "
        rf"of 9 MiB free",
        str(caught.value),
    )
    assert match is not None, caught.value
    weights, kv, scratch, together = map(int, match.groups())
    assert weights + kv + scratch == pytest.approx(together, abs=2)


def test_without_fitting_nothing_is_shrunk(read: Read, processor: Device) -> None:
    model = read("llama-dense")
    trial = Fitting(model, options(fit=False), machine(processor, MIB, MIB)).choose()
    assert (trial.n_ctx, trial.devices) == (TRAINED, (GPU,))


def test_devices_that_are_the_processor_share_its_memory(read: Read, processor: Device) -> None:
    model, given = read("llama-dense"), options(n_ctx=4096, tensor_split=(1.0, 1.0))
    infos = [replace(processor.info, name=name) for name in ("One", "Other")]
    both = machine(processor, 0, 4 << 30, infos=infos, n_offload=2)
    trial = Fitting(model, given, both).choose()
    assert trial.devices == (0, 1)
    total = trial.total().total
    assert max(need.total for need in trial.needs) < total - 1
    with pytest.raises(EngineError, match=r"One: .*; Other: "):
        Fitting(model, given, machine(processor, 0, total - 1, infos=infos, n_offload=2)).choose()


@pytest.mark.parametrize(
    ("given", "mixers", "ffns"),
    [
        ({"cpu_moe": True}, {GPU}, {CPU}),
        ({"kv_offload": False}, {CPU}, {GPU}),
        ({"n_gpu_layers": 0}, {0}, {0}),
    ],
)
def test_options_that_put_parts_on_the_cpu(
    read: Read, processor: Device, given: dict[str, Any], mixers: set[int], ffns: set[int]
) -> None:
    model = read("qwen3moe-moe")
    trial = Fitting(
        model, options(n_ctx=512, **given), machine(processor, 1 << 32, 1 << 32)
    ).choose()
    assert set(trial.placement.mixers) == mixers
    assert set(trial.placement.ffns) == ffns
    assert trial.devices == ((CPU,) if "n_gpu_layers" in given else (GPU, CPU))


def test_layers_on_a_cpu_without_a_driver(read: Read, processor: Device) -> None:
    alone = replace(machine(processor, 1 << 32, 1 << 32), cpu=None)
    with pytest.raises(EngineError, match="no OpenCL driver"):
        Fitting(read("llama-dense"), options(n_gpu_layers=1), alone).choose()


def test_a_buffer_that_is_too_large_shrinks_the_context(read: Read, processor: Device) -> None:
    model = read("llama-dense")
    whole = Fitting(model, options(), machine(processor, 1 << 32, 1 << 32)).choose()
    layer_bytes = whole.needs[0].kv // model.h.n_layers // 2
    limited = machine(processor, 1 << 32, 1 << 32)
    device = replace(processor, max_allocation=layer_bytes // 6)
    trial = Fitting(model, options(), replace(limited, open=lambda at: device)).choose()
    assert TRAINED * 4 // 6 - CONTEXT_STEP < trial.n_ctx <= TRAINED * 4 // 6
    with pytest.raises(DeviceError, match="takes 16 MiB, at most 2 MiB can be"):
        Fitting(model, options(n_ctx=TRAINED), replace(limited, open=lambda at: device)).choose()


def test_a_model_is_loaded_onto_the_devices_that_are_named(
    conformance_model: Callable[[str], Path],
) -> None:
    infos = [info for info in list_devices() if info.kind == "cpu"]
    if len(infos) < 2:
        pytest.skip("one OpenCL device for CPUs")
    names = [info.name for info in infos[:2]]
    given = options(device=f"{infos[0].index},{infos[1].index}", tensor_split=(1.0, 2.0))
    model = load_model(conformance_model("llama-dense"), given, lambda share: None)
    assert model.info.device_name == " + ".join(names)
    assert all(pages.n_bytes > 1000 for pages in model.runner.pages)


def test_as_few_devices_as_will_do_unless_they_are_named(read: Read, processor: Device) -> None:
    model = read("llama-dense")
    infos = [replace(processor.info, name=name, index=i, kind="gpu") for i, name in enumerate("AB")]
    devices = [replace(processor, info=info) for info in infos]
    one = Fitting(model, options(n_ctx=4096), machine(processor, 1 << 32, 0)).choose()
    for room, given, used in (
        (1 << 32, {}, (0,)),
        (1 << 32, {"tensor_split": (1.0, 1.0)}, (0, 1)),
        (one.needs[0].total, {}, (0, 1)),
    ):
        two = machine(
            processor, room, 0, infos=infos, n_offload=2, cpu=None, open=devices.__getitem__
        )
        assert Fitting(model, options(n_ctx=4096, **given), two).choose().devices == used


def test_rows_of_logits_fit_into_a_buffer(read: Read, processor: Device) -> None:
    model = read("llama-dense")
    model = replace(model, h=replace(model.h, n_vocab=8192))
    limited = machine(processor, 1 << 32, 1 << 32)
    device = replace(processor, max_allocation=6 * MIB)
    given = options(n_ctx=4096, n_ubatch=512)
    trial = Fitting(model, given, replace(limited, open=lambda at: device)).choose()
    assert trial.sizes.n_outputs == 6 * MIB // (4 * 8192)


def test_what_a_projector_takes_is_not_free(processor: Device) -> None:
    """A driver of GPUs tells how much memory there is, a system how much can still be had."""
    both = machine(processor, 100 * MIB, 50 * MIB)
    for info in both.infos:
        both = both.without(info, MIB)
    assert [both.free(info) for info in both.infos] == [99 * MIB, 50 * MIB]


def test_embeddings_and_additions_are_counted(
    conformance_model: Callable[[str], Path], read: Read, processor: Device
) -> None:
    model, wide = read("llama-dense"), machine(processor, 1 << 32, 1 << 32)
    plain = Fitting(model, options(), wide).choose().needs[0]
    shape = MediaShape(1000, together=False)
    given = Fitting(model, options(), wide, shape).choose().needs[0]
    assert given.total - plain.total == 512 * 1000 * 4
    directions = {i: np.ones(model.h.n_embd, np.float32) for i in range(1, model.h.n_layers)}
    with open_gguf(conformance_model("llama-dense")) as gguf:
        model = outline(gguf, model.h, processor, Additions(directions=directions))
    given = Fitting(model, options(n_gpu_layers=1), wide).choose().total()
    assert given.weights > Fitting(read("llama-dense"), options(), wide).choose().total().weights


def test_a_checkpoint_for_each_slot_counts_on_a_processor(read: Read, processor: Device) -> None:
    """Of the others as many as there is room for; the rest of memory is not theirs."""
    model, given = read("jamba-dense"), options(n_ctx=4096, n_parallel=2, n_gpu_layers=0)
    wide = Fitting(model, given, machine(processor, MIB, 1 << 40))
    trial = wide.choose()
    copies = trial.total().checkpoints
    assert copies > 0
    assert wide.room_for_checkpoints(trial) > 100 * copies
    less = Fitting(
        model, dataclasses.replace(given, ctx_checkpoints=0), machine(processor, MIB, 1 << 40)
    )
    without = less.choose()
    assert without.total().total == trial.total().total - copies
    narrow = Fitting(model, given, machine(processor, MIB, trial.total().total + 2 * MIB))
    assert narrow.room_for_checkpoints(narrow.choose()) == copies + MIB
    short = Fitting(model, given, machine(processor, MIB, trial.total().total - 1))
    with pytest.raises(EngineError, match="checkpoints"):
        short.choose()
