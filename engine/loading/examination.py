"""What a machine has, lacks and can serve, before there is a model: for ``serve doctor``.

Each device is measured in a process of its own (``python -m`` of this module, with the device's
index and the seconds), which a faulty driver may end or keep waiting.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

import gguf_serve
from gguf_serve.engine.loading.reasons import activation_name, device_reason
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels.opencl.compiling.program_cache import default_folder
from gguf_serve.kernels.opencl.device import open_device
from gguf_serve.kernels.opencl.missing import missing
from gguf_serve.kernels.opencl.platforms import DeviceInfo, choose_all, free_memory, list_devices

MEASURING_SECONDS = 8.0  # for one device: the best of what comes in that time
MOST_SECONDS = 120.0  # for all of it, with starting, and with others on the same processor
PARAMETERS = tuple(n * 10**9 for n in (0.5, 1, 2, 4, 8, 14, 32, 70, 120, 235))
# Bits of a parameter in a file: of llama.cpp's quantizations of models of the Llama family.
BITS = {"Q4_K_M": 4.9, "Q8_0": 8.5, "F16": 16.0}
CONTEXT_SHARE = 1 / 8  # of the weights' bytes, for context and scratch memory: a rule of thumb


class Measured(Struct, frozen=True):
    """What a device did when it did nothing else, and with which kernels it would serve.

    ``activations``: what those of quantized weights are rounded to. The multiply-adds are those of
    kernels.profile.measure_limits. ``forms``: Capabilities.forms, with blanks between.
    """

    family: str
    activations: str
    bytes_per_second: float
    macs_per_second: float
    forms: str = ""


class Examined(Struct, frozen=True):
    """A device; ``fault`` says why it could not be measured."""

    info: DeviceInfo
    free_bytes: int
    is_chosen: bool
    measured: Measured | None
    fault: str = ""


class Fit(Struct, frozen=True):
    """Whether weights of so many parameters, in so many bytes, fit the chosen devices, and at
    most how many tokens are read and generated a second (0: not measured)."""

    n_parameters: float
    file_type: str
    n_bytes: int
    fits: bool
    read_per_second: float = 0.0
    generated_per_second: float = 0.0


class Examination(Struct, frozen=True):
    """``reason``: why a start without options chooses the devices that it does; ``spare_bytes``:
    what it would leave free; ``missing``: sentences, with what to do."""

    devices: tuple[Examined, ...]
    reason: str
    missing: tuple[str, ...]
    spare_bytes: int
    fits: tuple[Fit, ...]


def examine(seconds: float = MEASURING_SECONDS) -> Examination:
    """Look at every device, and measure it for so many seconds."""
    options = EngineOptions()
    known = list_devices()
    chosen = choose_all(known, None) if known else []
    devices = tuple(_examined(info, info in chosen, seconds) for info in known)
    spare = options.fit_target[0] << 20
    return Examination(
        devices,
        device_reason(options, known, chosen) if chosen else "",
        tuple(_missing(known)),
        spare,
        tuple(fits([one for one in devices if one.is_chosen], spare)),
    )


def _missing(known: Sequence[DeviceInfo]) -> list[str]:
    platforms = {info.platform for info in known}
    found = missing(platforms, has_cpu=any(info.kind == "cpu" for info in known))
    if not is_writable(default_folder()):
        found.append(
            "compiled kernels cannot be kept, so every start compiles them: let XDG_CACHE_HOME "
            f"name a folder that can be written, not {default_folder() or 'none'}"
        )
    return found


def is_writable(folder: Path | None) -> bool:
    """Whether a folder can be written, or made."""
    if folder is None:
        return False
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def fits(chosen: Sequence[Examined], spare_bytes: int) -> Iterator[Fit]:
    """Sizes of models, spread over the devices by their free memory, with ``spare_bytes`` left on
    each. Every token reads all weights of a dense model once, and multiplies with each."""
    room = sum(max(one.free_bytes - spare_bytes, 0) for one in chosen)
    measured = [one.measured for one in chosen if one.measured is not None]
    all_measured = bool(measured) and len(measured) == len(chosen)
    # They take turns: a token waits for each.
    read = min((one.macs_per_second for one in measured), default=0.0) * all_measured
    bandwidth = min((one.bytes_per_second for one in measured), default=0.0) * all_measured
    for n in PARAMETERS:
        for name, bits in BITS.items():
            n_bytes = int(n * bits / 8)
            fit = n_bytes * (1 + CONTEXT_SHARE) <= room
            yield Fit(n, name, n_bytes, fit, read / n * fit, bandwidth / n_bytes * fit)


def _examined(info: DeviceInfo, is_chosen: bool, seconds: float) -> Examined:
    free = free_memory(info)
    try:
        return Examined(info, free, is_chosen, measured_aside(info.index, seconds))
    except MeasurementError as error:
        return Examined(info, free, is_chosen, None, str(error))


class MeasurementError(Exception):
    """A device could not be measured; the message says why."""


def measured_aside(index: int, seconds: float) -> Measured:
    """``measure`` in a process of its own. Raises MeasurementError."""
    root = str(Path(gguf_serve.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, *sys.path]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(index), str(seconds)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True, text=True, timeout=MOST_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"it had no answer within {MOST_SECONDS:.0f} seconds") from None
    except OSError as error:
        raise MeasurementError(f"no process can be started: {error}") from None
    if done.returncode < 0:
        raise MeasurementError(f"its driver ended the process by signal {-done.returncode}")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise MeasurementError("".join(last) or f"exit code {done.returncode}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def measure(index: int, seconds: float) -> Measured:
    """In a process of its own. Raises DeviceError, BuildError or pyopencl's errors."""
    from gguf_serve.kernels.opencl.program import Programs
    from gguf_serve.kernels.profile import measure_limits

    device = open_device(str(index))
    programs, began = Programs(device), time.monotonic()
    limits = [measure_limits(device, programs)]
    while time.monotonic() - began < seconds:
        limits.append(measure_limits(device, programs))
    return Measured(
        device.family, activation_name(device),
        max(one.bytes_per_second for one in limits), max(one.macs_per_second for one in limits),
        " ".join(device.capabilities.forms),
    )  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(msgspec.structs.asdict(measure(int(sys.argv[1]), float(sys.argv[2])))))
