"""An opened OpenCL device: its context and queue, and what it can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct, field
from msgspec.structs import replace

from gguf_serve.kernels.opencl.capabilities import ByteCodes, Capabilities
from gguf_serve.kernels.opencl.compiling.features import dot_defines, gpu_defines
from gguf_serve.kernels.opencl.memory import HugePages
from gguf_serve.kernels.opencl.platforms import (
    DeviceError,
    DeviceInfo,
    choose,
    list_devices,
    platform_devices,
)
from gguf_serve.kernels.opencl.tuning import Tuning, find_tuning, power_of_two

if TYPE_CHECKING:
    import pyopencl as cl

CommandQueue = Any  # pyopencl has no type hints


class Usage(Struct):
    """How much has been allocated on a device (kernels/opencl/tensor.py)."""

    n_bytes: int = 0


class Device(Struct, frozen=True, eq=False):
    """A device with its context and its one in-order queue.

    On a meta device allocations are counted but not made, and nothing may be run.
    """

    info: DeviceInfo
    context: cl.Context
    queue: cl.CommandQueue
    family: str  # "simd" or "simt": the variant of matmul and attention
    unified_memory: bool
    max_allocation: int
    capabilities: Capabilities = Capabilities()
    huge_pages: HugePages | None = None  # where buffers are cut from; None: the driver's memory
    is_meta: bool = False
    usage: Usage = field(default_factory=Usage)
    vendor: str = ""
    byte_codes: ByteCodes = "none"  # weights whose activations have 8 bits
    tuning: Tuning = Tuning()

    @property
    def is_simd(self) -> bool:
        return self.family == "simd"

    def meta(self) -> Device:
        """A meta device like this one, with nothing allocated."""
        return replace(self, is_meta=True, usage=Usage())

    @property
    def has_own_memory(self) -> bool:
        """Whether its memory is not the host's."""
        return self.info.kind != "cpu" and not self.unified_memory

    @property
    def defines(self) -> tuple[str, ...]:
        """What all its programs are compiled with."""
        return self.capabilities.forms if self.is_simd else ("SIMT",)

    def group(self, most: int) -> int:
        """Work-items that compute one row together: in the simd family one, else a power of two."""
        return 1 if self.is_simd else power_of_two(min(most, self.capabilities.work_group))

    def finish(self) -> None:
        self.queue.finish()


def open_device(
    wanted: str | None = None,
    *,
    family: str | None = None,
    n_threads: int = -1,
    use_gpu: bool = True,
    byte_codes: ByteCodes | None = None,
) -> Device:
    """Open a device (see ``choose``); ``family`` forces simd or simt, for tests.

    ``byte_codes``: None for what Capabilities says.
    """
    import pyopencl as cl

    info = choose(list_devices(n_threads), wanted, use_gpu)
    raw = platform_devices(n_threads)[info.index]
    context = cl.Context([raw])
    if family is None:
        family = "simd" if info.kind == "cpu" else "simt"
    if family not in ("simd", "simt"):
        raise DeviceError(f"unknown kernel family {family!r}: simd or simt")
    find_forms = dot_defines if family == "simd" else gpu_defines
    capabilities = replace(info.capabilities, forms=find_forms(info))
    if byte_codes is None:
        byte_codes = capabilities.byte_codes
    return Device(
        info=info,
        context=context,
        queue=cl.CommandQueue(context),
        family=family,
        unified_memory=bool(raw.host_unified_memory),
        max_allocation=int(raw.max_mem_alloc_size),
        capabilities=capabilities,
        huge_pages=HugePages() if info.kind == "cpu" else None,
        vendor=raw.vendor.strip(),
        byte_codes=byte_codes if family == "simd" else "none",
        tuning=find_tuning(info.name, raw.vendor.strip()).within(capabilities.work_group),
    )
