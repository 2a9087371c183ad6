"""Kernel variants: one computation by several kernels, a row for each.

A launcher says what is to be computed (``Product`` in matmul.py, ``Heads`` in attention.py) and
takes the first row of its table that is for this device and this work. A kernel for some devices
alone is a row before those that any device can run; what it asks of a device are capabilities
(capabilities.py), never names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from msgspec import Struct

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tape import Grid

Task = TypeVar("Task")


class Layout(NamedTuple):
    """What a variant makes of a task: defines of its own, and the launch's work-items."""

    defines: list[str]
    grid: Grid
    local: tuple[int, ...] | None = None


def on_cpu(device: Device) -> bool:
    """A work-item has 16 rows in a vector."""
    return device.is_simd


def on_gpu(device: Device) -> bool:
    """A work-group shares local memory."""
    return not device.is_simd


def anything(what: Any) -> bool:
    return True


class Variant(Struct, Generic[Task], frozen=True):
    """A kernel, what it is for and how it is launched.

    tuned: the sizes of Tuning that its layout depends on, of which scripts/tune.py tries others.
    forms: of what it reads, beside those that all kernels of a table take. quantizes: it can write
    the integer activations that the next matrix reads. extends: it can do more with a row when
    its last work-item has ended.
    """

    source: str
    devices: Callable[[Device], bool]
    lay_out: Callable[[Device, Task], Layout]
    tasks: Callable[[Task], bool] = anything
    tuned: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    quantizes: bool = False
    extends: bool = False


def choose(table: Sequence[Variant[Task]], device: Device, task: Task) -> Variant[Task]:
    """The first variant for a device and a task; ValueError if there is none."""
    for variant in table:
        if variant.devices(device) and variant.tasks(task):
            return variant
    raise ValueError(f"no kernel for {task} on {device.info.name} ({device.family})")


def can_quantize(table: Iterable[Variant[Task]], device: Device) -> bool:
    """Whether all variants that a device may get write integer activations."""
    return all(variant.quantizes for variant in table if variant.devices(device))


def takes(table: Iterable[Variant[Any]], device: Device, form: str) -> bool:
    """Whether a device has a variant that reads a form which not all take."""
    return any(form in variant.forms for variant in table if variant.devices(device))


def tuned_sizes(table: Iterable[Variant[Any]], device: Device) -> list[str]:
    """The names of the sizes that matter on a device."""
    names = (name for variant in table if variant.devices(device) for name in variant.tuned)
    return list(dict.fromkeys(names))
