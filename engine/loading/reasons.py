"""What a start has chosen, and why, as one line of the log."""

from __future__ import annotations

from collections.abc import Sequence

from gguf_serve.engine.loading.assembly import Sizes
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels.opencl.capabilities import ByteCodes
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.missing import gpus_without_driver
from gguf_serve.kernels.opencl.platforms import DeviceInfo

ACTIVATION_NAMES: dict[ByteCodes, str] = {
    "none": "int16", "some": "int8 for K-quants, int16 for others", "all": "int8",
}  # fmt: skip


def reasons(
    options: EngineOptions,
    known: Sequence[DeviceInfo],
    devices: Sequence[Device],
    n_ctx: int,
    n_ctx_train: int,
    sizes: Sizes,
) -> str:
    """``known``: all devices that the drivers have; ``n_ctx``: tokens of all slots together."""
    names = " and ".join(device.info.name for device in devices)
    families = " and ".join(dict.fromkeys(device.family for device in devices))
    said = [
        f"{names} ({device_reason(options, known, [one.info for one in devices])})",
        f"kernels of the {families} family",
    ]
    simd = next((device for device in devices if device.is_simd), None)
    if simd is not None:
        said.append(f"activations in {activations(options, simd)}")
    said.append(f"a context of {n_ctx} tokens ({context(options, n_ctx, n_ctx_train)})")
    return "; ".join([*said, slots(options, sizes)])


def device_reason(
    options: EngineOptions, known: Sequence[DeviceInfo], chosen: Sequence[DeviceInfo]
) -> str:
    if options.device is not None:
        return "--device"
    if any(info.kind == "gpu" for info in chosen):
        return "the only device" if len(known) == 1 else "a GPU comes before processors"
    if any(info.kind == "gpu" for info in known):
        return "--gpu-layers 0"
    drivers = {info.platform for info in known}
    unused = "".join(
        f"; {vendor.name}'s GPU has no driver, see gguf-serve doctor"
        for vendor in gpus_without_driver(drivers)
    )
    if len(known) == 1:
        return f"the only device{unused}"
    fastest = f"of {len(drivers)} drivers this one is the fastest known"
    return f"no driver has a GPU, and {fastest}{unused}"


def activation_name(device: Device) -> str:
    """What the activations of quantized weights are rounded to, in the simd family."""
    return ACTIVATION_NAMES[device.byte_codes]


def activations(options: EngineOptions, device: Device) -> str:
    name = activation_name(device)
    if options.activation_type != "auto":
        return f"{name} (--activation-type)"
    if device.byte_codes != "none":
        return f"{name} (up to twice as fast here; --activation-type int16 is more exact)"
    return f"{name} (nothing is faster here)"


def context(options: EngineOptions, n_ctx: int, n_ctx_train: int) -> str:
    if options.n_ctx > 0 and n_ctx == options.n_ctx:
        return "--ctx-size"
    return "the model's" if n_ctx == n_ctx_train else "what memory has room for"


def slots(options: EngineOptions, sizes: Sizes) -> str:
    each = "" if sizes.n_slots == 1 else f" of up to {sizes.n_ctx_slot} tokens"
    why = "--parallel" if options.n_parallel > 0 else "the default"
    return f"{sizes.n_slots} slot{'s' * (sizes.n_slots > 1)}{each} ({why})"
