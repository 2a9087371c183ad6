"""The programs that launchers and models ask for, recorded without a driver.

For scripts that compile them all: check_compile.py, check_gpu_compile.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.architecture.table import find_architecture
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.loading.assembly import CacheTypes, allocate_memory, sizes_of
from gguf_serve.engine.model.placement import placement_of
from gguf_serve.engine.model.weights import allocate_weights
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.recording.step import Mode
from gguf_serve.kernels.attention.attention import AttentionInputs, Mask, attention, split_scratch
from gguf_serve.kernels.attention.kv import KV_TYPES, KVPages, KVShape
from gguf_serve.kernels.attention.rope import RopeStyle, qkv_rows, rope_kv
from gguf_serve.kernels.matrix.matmul import (
    GLU_ACTIVATIONS,
    RowGroups,
    fuses_quantization,
    glu,
    matmul,
)
from gguf_serve.kernels.matrix.moe import Routing, route, routing_buffers
from gguf_serve.kernels.opencl.capabilities import ByteCodes, Capabilities
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import DeviceInfo
from gguf_serve.kernels.opencl.program import Programs, Spec
from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty
from gguf_serve.kernels.quantization.activations import (
    Activations,
    activations,
    takes_bytes,
    wants_spans,
)
from gguf_serve.kernels.quantization.quants import SUPPORTED_TYPES, by_name
from gguf_serve.kernels.quantization.weights import Matrix
from gguf_serve.kernels.rows.norm import NormWeights, norm
from gguf_serve.kernels.rows.softcap import softcap
from gguf_serve.kernels.rows.topk import topk, topk_buffers

HEADS = ((64, 64), (80, 80), (128, 128), (256, 256), (576, 512))  # of K and V
N_TOKENS, N_COLS, N_HEADS = 64, 512, 8
N_EXPERTS = 8


def gpu(forms: Sequence[str] = ()) -> Device:
    """A meta device of no driver, whose kernels are those for GPUs; ``forms``: see
    kernels/opencl/compiling/features.py."""
    return _device("gpu", "simt", tuple(forms))


def processor(forms: Sequence[str], *, byte_codes: ByteCodes = "none") -> Device:
    """The same with the kernels for CPUs."""
    return _device("cpu", "simd", tuple(forms), byte_codes=byte_codes)


def _device(
    kind: str, family: str, forms: tuple[str, ...] = (), *, byte_codes: ByteCodes = "none"
) -> Device:
    info = DeviceInfo(0, "none", "none", "none", kind, 8 << 30, 64)
    context: Any = SimpleNamespace(devices=[None])
    queue: Any = None  # nothing is enqueued on a meta device
    return Device(
        info, context, queue, family, False, 2 << 30, Capabilities(forms=forms), is_meta=True,
        byte_codes=byte_codes,
    )  # fmt: skip


def launcher_specs(device: Device) -> list[Spec]:
    """Programs of the kernels that a step spends its time in: products of every tensor type with
    every form of activations and everything that is done with the sums, and attention."""
    programs = Programs(device)
    tape = Tape(device, programs)
    counts = empty(device, (5,), np.int32)
    for name in SUPPORTED_TYPES:
        for x in _forms(device, name):
            _record_products(tape, name, x, counts)
    for activation in GLU_ACTIVATIONS:
        _record_glu(tape, _pair("Q4_K"), _forms(device, "Q4_K")[0], counts, activation)
    for kind in KV_TYPES:
        for head in HEADS if kind == "f16" else HEADS[2:3]:
            _record_attention(tape, KVShape(2, *head), kind, counts)
    logits, experts = empty(device, (N_TOKENS, 151936)), empty(device, (N_TOKENS, 128))
    topk(tape, logits, topk_buffers(device, N_TOKENS, 151936, 1))
    softcap(tape, logits, 30.0)
    for tile in (1, 32):
        buffers = routing_buffers(device, N_TOKENS, 128, 8)
        route(tape, experts, Routing(128, 8, normalize=True), buffers, counts, tile=tile)
    return sorted(programs.take_wanted())


def model_specs(path: Path, device: Device, modes: Sequence[Mode]) -> list[Spec]:
    """Programs of all kernels of the steps of a model in a file."""
    options = EngineOptions()
    programs = Programs(device)
    with open_gguf(path) as gguf:
        h = read_hyperparameters(gguf, find_architecture(gguf.architecture))
        weights, _ = allocate_weights(gguf, h, [device], placement_of([0] * (2 * h.n_layers + 2)))
        sizes = sizes_of(h, options, min(h.n_ctx_train, 4096))
        memory = allocate_memory(
            h, weights, [(device, programs)], sizes, CacheTypes("f16", "f16"), flash=True
        )
        memory.decoder.record_topk()
        for mode in modes:
            memory.decoder.record(mode)
    return sorted(programs.take_wanted())


def _forms(device: Device, name: str) -> list[Activations]:
    """The activations that matrices of a type take on a device: of 16, of 8 bits, with spans."""
    w = Matrix(None, by_name(name), N_COLS, N_COLS, 0, 0)
    quantized = not w.is_float
    forms = [activations(device, N_TOKENS, N_COLS, quantized=quantized)]
    if wants_spans(device, [w]):
        forms.append(activations(device, N_TOKENS, N_COLS, quantized=True, spans=True))
    if takes_bytes(device, [w]):
        forms.append(activations(device, N_TOKENS, N_COLS, quantized=True, bytes=True))
    return forms


def _record_products(tape: Tape, name: str, x: Activations, counts: Tensor) -> None:
    device, kind = tape.device, by_name(name)
    w = Matrix(None, kind, N_COLS, N_COLS, 0, 0)
    out, bias = empty(device, (N_TOKENS, N_COLS)), empty(device, (N_COLS,))
    for tile in (1, 8, 32):
        matmul(tape, w, x, out, counts, tile=tile)
        matmul(tape, w, x, out, counts, tile=tile, add=True)
        matmul(tape, w, x, out, counts, tile=tile, bias=bias, add=True, scale=2.0)
        _record_experts(tape, name, x, counts, tile)
        _record_glu(tape, _pair(name), x, counts, "silu", tile)
    weight = empty(device, (N_COLS,))
    norm(tape, out, NormWeights(weight, 1e-5), x)


def _record_experts(tape: Tape, name: str, x: Activations, counts: Tensor, tile: int) -> None:
    device, kind = tape.device, by_name(name)
    w = Matrix(None, kind, N_COLS, N_COLS, 0, 0, n_experts=N_EXPERTS)
    lists = [empty(device, (N_TOKENS, 4), np.int32) for _ in range(3)]
    grid = Per(TOKENS, tile, 2, N_EXPERTS)
    rows = RowGroups(lists[0], lists[1], lists[2], grid, used=2)
    out, bias = empty(device, (2 * N_TOKENS, N_COLS)), empty(device, (N_EXPERTS * N_COLS,))
    weighted = rows.weighted(empty(device, (2 * N_TOKENS,)))
    matmul(tape, w, x, out, counts, tile=tile, experts=rows, bias=bias)
    matmul(tape, w, x, out, counts, tile=tile, experts=weighted)
    _record_glu(tape, _pair(name, N_EXPERTS), x, counts, "silu", tile, rows)


def _pair(name: str, n_experts: int = 1) -> Matrix:
    """A matrix of gate and up."""
    rows = 2 * N_COLS
    return Matrix(None, by_name(name), rows, N_COLS, 0, 0, paired=True, n_experts=n_experts)


def _record_glu(
    tape: Tape,
    w: Matrix,
    x: Activations,
    counts: Tensor,
    activation: str,
    tile: int = 8,
    experts: RowGroups | None = None,
) -> None:
    """With every form of the result."""
    device, n = tape.device, N_TOKENS * (experts.used if experts else 1)
    outs = [Activations(N_COLS, values=empty(device, (n, N_COLS)))]
    if fuses_quantization(device, w):
        outs.append(activations(device, n, N_COLS, quantized=True))
    if device.byte_codes == "all":
        outs.append(activations(device, n, N_COLS, quantized=True, bytes=True))
    for out in outs:
        glu(
            tape, w, x, out, counts, activation=activation, tile=tile, experts=experts,
            limit=7.0 if activation == "silu_late" else 0.0,
        )  # fmt: skip


def _record_attention(tape: Tape, shape: KVShape, kind: str, counts: Tensor) -> None:
    device = tape.device
    layer = KVPages(device, [shape], 4, kind, kind).layers[0]
    width = (N_HEADS + shape.n_kv) * shape.head + shape.n_kv * shape.head_v
    qkv = empty(device, (N_TOKENS, width))
    ints = empty(device, (N_TOKENS, 4), np.int32)
    inputs = AttentionInputs(ints, ints, ints, counts)
    width = N_HEADS * shape.head_v
    out = Activations(width, values=empty(device, (N_TOKENS, width)))
    scratch = split_scratch(device, N_TOKENS, N_HEADS, shape, 512)
    for split in (None, scratch):
        attention(tape, qkv, N_HEADS, layer, inputs, out, Mask(), split=split)
    table = empty(device, (N_TOKENS, shape.head))
    rope_kv(
        tape, qkv_rows(qkv, N_HEADS, shape), N_HEADS, layer, table, ints,
        style=RopeStyle(64, neox=True), scale=1.0,
    )  # fmt: skip
