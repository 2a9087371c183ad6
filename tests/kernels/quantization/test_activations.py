"""Which form of activations matrices read, and what has no room in one."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from random_blocks import random_matrix

from gguf_serve.kernels.opencl.capabilities import Capabilities
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.quantization.activations import activations, wants_spans
from gguf_serve.kernels.quantization.weights import pack


def test_where_blocks_share_scales(device: Device, programs: Programs) -> None:
    rng = np.random.default_rng(9)
    paired = replace(device, capabilities=Capabilities(forms=("DOT_PAIRS_512",)))
    made = {
        (name, n): pack(device, programs, [random_matrix(name, 16, n, rng)[0]])
        for name, n in (("Q4_K", 256), ("Q8_0", 256), ("Q8_0", 288))
    }
    k, other, narrow = made.values()
    assert wants_spans(paired, [other, k])
    assert not wants_spans(paired, [other])
    assert not wants_spans(paired, [narrow])
    assert not wants_spans(replace(paired, capabilities=Capabilities()), [k])


def test_columns_that_are_not_whole_blocks(device: Device) -> None:
    with pytest.raises(ValueError, match="33 columns cannot be quantized"):
        activations(device, 1, 33, quantized=True)
    with pytest.raises(ValueError, match="64 columns cannot be quantized in blocks of 256"):
        activations(device, 1, 64, quantized=True, spans=True)
