"""The devices that the options name, opened when they are needed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

from msgspec.structs import replace

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.loading.fit import Machine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels.opencl.capabilities import ByteCodes
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.platforms import (
    DeviceInfo,
    choose,
    choose_all,
    choose_cpu,
    free_memory,
    list_devices,
)

# See open_device().
BYTE_CODES: dict[str, ByteCodes | None] = {"auto": None, "int8": "all", "int16": "none"}
# Models with fewer parameters show what 8 bits for all weights cost: SmolLM2-135M has a perplexity
# 1.4 % higher and does not know the capital of France, Gemma-3-270M's is 0.9 % higher, that of
# Qwen2.5-0.5B 0.2 %. Prompts are read at three quarters of the speed and more without
# (docs/performance.md).
SMALL_MODEL = 400_000_000

log = logging.getLogger(__name__)


def find_machine(
    options: EngineOptions,
    n_parameters: int,
    free: Callable[[DeviceInfo], int] = free_memory,
) -> Machine:
    """The devices for a model of so many parameters. Raises EngineError for options that do not go
    together, DeviceError for a device that is not there."""
    known = list_devices(options.n_threads)
    infos = _with_layers(known, options)
    n_offload = len(infos)
    _check_shares(options.tensor_split, infos)
    cpu = choose_cpu(known) if any(info.kind == "cpu" for info in known) else None
    overrides = [_override(text, known) for text in options.override_tensor]
    for info in [*([cpu] if cpu else []), *(info for _, info in overrides)]:
        if info not in infos:
            infos.append(info)

    @cache
    def open_one(at: int) -> Device:
        device = open_device(
            str(infos[at].index), family=options.kernel_family, n_threads=options.n_threads,
            byte_codes=BYTE_CODES[options.activation_type],
        )  # fmt: skip
        is_small = options.activation_type == "auto" and n_parameters < SMALL_MODEL
        return (
            replace(device, byte_codes="some")
            if is_small and device.byte_codes == "all"
            else device
        )

    return Machine(
        infos, n_offload, None if cpu is None else infos.index(cpu),
        [(pattern, infos.index(info)) for pattern, info in overrides], open_one, free,
    )  # fmt: skip


def _check_shares(shares: tuple[float, ...], infos: list[DeviceInfo]) -> None:
    """As with llama-server, devices beyond the shares get nothing."""
    names = ", ".join(info.name for info in infos)
    n = len(infos)
    if shares and not sum(shares[:n]):
        raise EngineError(f"--tensor-split gives nothing to the first {n} devices: {names}")
    if len(shares) > n:
        log.warning(
            "--tensor-split has %d shares for %d devices (%s): the last are left out",
            len(shares), n, names,
        )  # fmt: skip


def _with_layers(known: list[DeviceInfo], options: EngineOptions) -> list[DeviceInfo]:
    if options.split_mode not in ("layer", "none"):
        raise EngineError(
            f"--split-mode {options.split_mode} is not supported: a layer is computed on one "
            "device (layer), or all of them are (none)"
        )
    infos = choose_all(known, options.device, use_gpu=str(options.n_gpu_layers) != "0")
    if options.split_mode == "layer":
        if options.main_gpu:
            log.warning("--main-gpu counts with --split-mode none only: layers go to all devices")
        return infos
    if not 0 <= options.main_gpu < len(infos):
        names = ", ".join(f"{i}: {info.name}" for i, info in enumerate(infos))
        raise EngineError(f"--main-gpu {options.main_gpu}: there is no such device among {names}")
    return [infos[options.main_gpu]]


def _override(text: str, known: list[DeviceInfo]) -> tuple[str, DeviceInfo]:
    """``PATTERN=DEVICE``, where "CPU" is the processor."""
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern or not name:
        raise EngineError(f"--override-tensor: {text!r} is not a pattern, '=' and a device")
    return pattern, choose_cpu(known) if name.upper() == "CPU" else choose(known, name)
