"""Recorded launches: what changes from step to step lies in buffers and grids alone."""

from __future__ import annotations

import numpy as np
import pyopencl as cl
import pytest
from msgspec.structs import replace

import gguf_serve.kernels.opencl.tape
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import DeviceError
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import (
    MAX_GEOMETRIES,
    OUTPUTS,
    PARTS,
    TILES,
    TOKENS,
    Per,
    Tape,
    free_groups,
)
from gguf_serve.kernels.opencl.tensor import Tensor, read, upload, write, zeros
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.norm import NormWeights, norm


class Copying:
    """A tape that copies rows of ``x`` to ``out``: as many as there are tokens."""

    def __init__(self, device: Device, programs: Programs, count: int = TOKENS) -> None:
        self.x = upload(device, np.arange(48, dtype=np.float32).reshape(3, 16))
        self.out: Tensor = zeros(device, (3, 16))
        self.tape = Tape(device, programs)
        out = Activations(16, values=self.out)
        norm(self.tape, self.x, NormWeights(None, 0.0), out, count=count)


@pytest.mark.parametrize(
    ("per", "size"),
    [
        (Per(TOKENS), 5), (Per(OUTPUTS), 3), (Per(TILES), 8), (Per(PARTS), 0),
        (Per(TOKENS, 2), 3), (Per(TOKENS, 5), 1), (Per(TILES, 8, 64), 64), (Per(PARTS, 4, 9), 0),
        (Per(TOKENS, 4, 2, 7), 11), (Per(PARTS, 4, 2, 7), 0),
    ],
)  # fmt: skip
def test_grids_follow_counts(per: Per, size: int) -> None:
    assert per.size((5, 3, 8, 0)) == size


@pytest.mark.parametrize(
    ("size", "n_groups", "groups"),
    [
        ((256, 100), 8, (64, 1)), ((48, 96), 8, (16, 4)), ((7, 9, 640), 8, (1, 1, 64)),
        ((256, 1), 64, (4, 1)), ((40, 1), 64, (1, 1)), ((80,), 10, (8,)), ((0, 3), 8, (1, 1)),
    ],
)  # fmt: skip
def test_items_that_share_nothing_are_grouped(
    size: tuple[int, ...], n_groups: int, groups: tuple[int, ...]
) -> None:
    assert free_groups(size, 64, n_groups) == groups


def test_groups_are_as_large_as_the_kernel_can_have(device: Device, programs: Programs) -> None:
    tape = Tape(replace(device, info=replace(device.info, kind="gpu")), programs)
    logits = zeros(device, (512, 20))
    args = {"logits": logits, "n_vocab": 20, "cap": 1.0}
    tape.add("rows/softcap.cl", "softcap", [], args, (2, Per(TOKENS)))
    (launch,) = tape.launches
    if device.is_simd:
        assert launch.local_size((2, 512)) == (1, 1)
        return
    assert launch.local_size((2, 512)) == free_groups((2, 512), *launch.free)
    assert launch.local_size((2, 512))[1] > 1


def test_the_kernel_that_a_device_does_not_take_is_named(
    device: Device, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise cl.LogicError("INVALID_WORK_GROUP_SIZE")

    step = Copying(device, programs)
    monkeypatch.setattr(cl, "enqueue_nd_range_kernel", refuse)
    with pytest.raises(DeviceError, match=r"norm of .* in groups of .*INVALID_WORK_GROUP_SIZE"):
        step.tape.run((1, 0, 0, 0))


def test_replay_reads_what_lies_in_the_buffers(device: Device, programs: Programs) -> None:
    step = Copying(device, programs)
    step.tape.run((2, 0, 0, 0))
    result = read(step.out, None, device.queue)
    assert result[:2].tolist() == np.arange(32).reshape(2, 16).tolist()
    assert not result[2].any()
    write(device, step.x, np.full((3, 16), 7, np.float32))
    step.tape.run((3, 0, 0, 0))
    assert np.all(read(step.out, None, device.queue) == 7)


def test_launches_of_nothing_are_skipped(device: Device, programs: Programs) -> None:
    step = Copying(device, programs, OUTPUTS)
    step.tape.run((3, 0, 0, 0))
    assert not read(step.out, None, device.queue).any()
    step.tape.run((3, 1, 0, 0))
    assert read(step.out, None, device.queue)[0, 1] == 1


def test_launches_of_some_steps_only(device: Device, programs: Programs) -> None:
    """What follows them is a launch of its own, in every step."""
    copy, tape = Copying(device, programs), Tape(device, programs)
    other = zeros(device, (3, 16))
    with tape.only_if(PARTS):
        norm(tape, copy.x, NormWeights(None, 0.0), Activations(16, values=copy.out))
    norm(tape, copy.x, NormWeights(None, 0.0), Activations(16, values=other))
    for n_parts in (0, 1):
        tape.run((3, 0, 0, n_parts))
        x, sometimes, always = (read(t, None, device.queue) for t in (copy.x, copy.out, other))
        assert np.array_equal(always, x)
        assert np.array_equal(sometimes, x * n_parts)


def test_outputs_can_be_all_the_tokens_there_are(device: Device, programs: Programs) -> None:
    step = Copying(device, programs)
    before, step.tape.tokens = step.tape.launches[0], OUTPUTS
    norm(step.tape, step.x, NormWeights(None, 0.0), Activations(16, values=step.out))
    sizes = [launch.global_size((3, 1, 0, 0)) for launch in (before, step.tape.launches[1])]
    assert [size[0] // before.local[0] for size in sizes] == [3, 1]


def test_no_argument_is_set_while_it_runs(
    device: Device, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("set_args", "set_arg", "__call__"):
        original = getattr(cl.Kernel, name)

        def counted(self, *args, _name=name, _original=original, **options):
            calls.append(_name)
            return _original(self, *args, **options)

        monkeypatch.setattr(cl.Kernel, name, counted)
    step = Copying(device, programs)
    assert calls, "recording binds the arguments"
    calls.clear()
    for n in (1, 3, 2, 3):
        step.tape.run((n, 0, 0, 0))
    device.finish()
    assert calls == []


def test_sizes_of_grids_are_kept_for_the_latest_counts(
    device: Device, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Copying(device, programs, OUTPUTS)
    computed: list[int] = []
    original = gguf_serve.kernels.opencl.tape.Launch.global_size

    def counted(
        self: gguf_serve.kernels.opencl.tape.Launch, counts: tuple[int, ...]
    ) -> tuple[int, ...]:
        computed.append(counts[0])
        return original(self, counts)

    monkeypatch.setattr(gguf_serve.kernels.opencl.tape.Launch, "global_size", counted)
    for n in (1, 2, 1, 2):
        step.tape.run((n, 0, 0, 0))
    assert computed == [1, 2]
    for n in range(3, MAX_GEOMETRIES + 3):
        step.tape.run((n, 0, 0, 0))
    step.tape.run((1, 0, 0, 0))
    assert computed == [*range(1, MAX_GEOMETRIES + 3), 1]
