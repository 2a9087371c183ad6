"""Arguments by name: signatures against those of a C preprocessor, and what does not fit them."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest

from gguf_serve.kernels.matrix.moe import combine
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.signature import ArgumentError, signature, signatures
from gguf_serve.kernels.opencl.sources import SOURCES
from gguf_serve.kernels.opencl.tape import Tape
from gguf_serve.kernels.opencl.tensor import empty
from gguf_serve.kernels.quantization.quants import by_name

# Of each kernel with optional parameters, defines that have as many of them as can be, then few.
PAGES = ("PAGE=32", "K_TYPE=KV_F16", "V_TYPE=KV_F16")
HEADS = ("HD=64", "HDV=64", "G=1", "WG=32", "QB=1", "SELECTIONS=1", *PAGES)
MASK = ("ALIBI", "SINKS", "SELECTED")
MATMUL = (*by_name("Q8_0").defines, "NT=1", "PREFETCH_BYTES=0", "SLICES=4")
EXPERTS = ("ACT_INT", "BIAS", "SCALE", "EXPERTS", "WEIGHTED")
NORMED = ("ACT_INT", "NORM_NEXT", "NORM_RMS", "NORM_WEIGHT")
ROPE = ("HD=64", "HDV=64", "N_ROT=64", "ROT_AT=0", "WG=1", "W_HEAD=0", "W_ITEM=1", *PAGES)
NORM = ("QK_NORM", "K_WEIGHT")
JOINT = ("RATIO=1", "PAGE_TOKENS=32", *HEADS)
BLOCKS = ("BLOCK=1", "CHOSEN=4", "TAIL", "HEADS=4", "WG=1", *PAGES, "HD=16", "HDV=16")
ROUTING = ("N_EXPERTS=8", "USED=2", "GATE_SOFTMAX", "WG=1")
VARIANTS: list[tuple[str, str, tuple[str, ...], tuple[str, ...]]] = [
    ("attention/attention_simd.cl", "attention", HEADS, (*MASK, "SPLIT")),
    ("attention/attention_simd.cl", "attention", HEADS, ("QUANTIZE_OUT", "SLAB_PAGES=8")),
    ("attention/attention_plain.cl", "attention", HEADS, MASK),
    ("attention/attention_combine.cl", "combine", HEADS, ("SINKS", "QUANTIZE_OUT")),
    ("attention/indexer.cl", "index_scores", BLOCKS, ("WEIGHTS",)),
    ("attention/joint.cl", "attend", JOINT, ("CHOSEN", "ENDS", "N_ROT=16")),
    ("attention/rope.cl", "rope_table", ROPE, ("COMPONENTS",)),
    ("attention/rope.cl", "rope_kv", ROPE, ("CLAMP", *NORM, "Q_WEIGHT", "TEMPERATURE")),
    ("attention/rope.cl", "rope_kv", ROPE, ("NO_ROPE", "SLAB_PAGES=8")),
    ("attention/rope.cl", "pool_keys", (*ROPE, "K_TOKENS=4"), ("GATED", *NORM)),
    ("matrix/activate.cl", "activate", ("ACT_SILU", "REPEAT=1"), ("TIMES", "DIVIDE", "QUANTIZE")),
    ("matrix/embed.cl", "embed", MATMUL, ("MEDIA", "SLAB")),
    ("matrix/matmul_simd.cl", "matmul", MATMUL, EXPERTS),
    ("matrix/matmul_simd.cl", "matmul", MATMUL, ("ACT_INT", "GLU_SILU", "QUANTIZE_OUT")),
    ("matrix/matmul_simd.cl", "matmul", MATMUL, (*NORMED, "POST", "QUANTIZE")),
    ("matrix/matmul_simd.cl", "matmul", MATMUL, (*NORMED, "FLOATS", "QUANTIZE")),
    ("matrix/moe.cl", "route", ROUTING, ("BIASED", "TABLE", "SINGLE")),
    ("matrix/moe.cl", "sort", (*ROUTING, "TILE=1"), ()),
    ("matrix/moe.cl", "combine", (), ("WEIGHTS", "EXTRA", "GATED")),
    ("recurrent/conv.cl", "conv", ("CONV=4",), ("BIAS",)),
    ("recurrent/scan_simd.cl", "scan", ("N=16", "HEAD_SIZE=1", "HEADS=1"), ("DT_BIAS",)),
    ("recurrent/scan_simt.cl", "scan", ("N=16", "HEAD_SIZE=1", "HEADS=1"), ("DT_BIAS",)),
    ("rows/gather.cl", "mix_rows", ("TAPS=2",), ("BY_ROW", "BOUNDED")),
    ("rows/hyper.cl", "reduce", ("HC=4", "LOGITS=24", "ITERATIONS=1"), ("MEAN",)),
    ("rows/norm.cl", "norm", ("WG=1", "NORM_RMS"), ("NORM_BIAS", "POST", "GATHER", "FLOATS")),
    ("rows/norm.cl", "norm", ("WG=1", "NORM_RMS"), ("NORM_WEIGHT", "FLOATS", "QUANTIZE")),
]  # fmt: skip


class Memory:
    """A buffer that stands for itself."""

    def __init__(self, name: str, floats: bool) -> None:
        self.buffer, self.dtype = name, np.dtype(np.float32 if floats else np.int32)


def preprocessed(source: str, name: str, defines: tuple[str, ...]) -> list[tuple[str, str]]:
    """(type, name) of a kernel's parameters, as a C preprocessor leaves them."""
    command = ["cc", "-E", "-P", "-x", "c", f"-I{SOURCES}", *(f"-D{d}" for d in defines)]
    text = subprocess.run(
        [*command, str(SOURCES / source)], check=True, capture_output=True, text=True
    ).stdout
    match = re.search(rf"kernel[^;{{]*void {name}\(([^)]*)\)", text)
    assert match is not None
    fields = [re.sub(r"\b(global|const|volatile)\b", "", p).split() for p in match[1].split(",")]
    return [("".join(words[:-1]), words[-1]) for words in fields]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C preprocessor")
@pytest.mark.parametrize("family", ["SIMD", "SIMT"])
@pytest.mark.parametrize(
    ("source", "name", "defines", "options"), VARIANTS,
    ids=[f"{name}-{'-'.join(options)}" for _, name, _, options in VARIANTS],
)  # fmt: skip
def test_signatures(
    source: str, name: str, defines: tuple[str, ...], options: tuple[str, ...], family: str
) -> None:
    """Names, number, order and types; by name, in whatever order they are given."""
    if family == "SIMT":
        source = source.replace("attention_simd", "attention_simt")
        source = source.replace("matmul_simd", "matvec_simt")
        if "QUANTIZE_OUT" in options or "NORM_NEXT" in options:
            pytest.skip("for CPUs only")
    expected = preprocessed(source, name, (*defines, *options, family))
    found = signature(source, name)
    given: dict[str, object] = {}
    for p in found.parameters:
        slabs = [(k, own) for k, own in expected if re.fullmatch(rf"{p.name}(_\d)?", own)]
        if slabs and p.is_buffer:
            given[p.name] = tuple(Memory(own, "float" in k or "scale_t" in k) for k, own in slabs)
        elif slabs:
            given[p.name] = {"int": 3, "ulong": 4, "float": 5.0}[p.type]
    _, values = found.bind(dict(reversed(given.items())), [*defines, *options])
    scalars = {"int": np.int32(3), "ulong": np.uint64(4), "float": np.float32(5)}
    assert values == [own if "*" in kind else scalars[kind] for kind, own in expected]
    for (kind, _), value in zip(expected, values, strict=True):
        assert "*" in kind or value.dtype == scalars[kind].dtype


def test_every_kernel_has_a_signature() -> None:
    """And its conditions are of the forms that are known."""
    for path in SOURCES.rglob("*.cl"):
        source = str(path.relative_to(SOURCES))
        kernels = re.findall(r"^kernel\b", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(kernels) >= len(signatures(source)) >= min(len(kernels), 1), source


class Kernels:
    """Takes the place of Programs: keeps the defines and arguments of the last kernel."""

    def kernel(self, source: str, name: str, defines: list[str]) -> Kernels:
        self.defines = defines
        return self

    def set_args(self, *args: Any) -> None:
        self.args = args

    def get_work_group_info(self, *args: object) -> int:
        return 64


def test_an_argument_brings_its_define(device: Device) -> None:
    kernels = Kernels()
    y, out, weights = (empty(device, shape) for shape in ((4, 16), (2, 16), (4,)))
    for given, define in ((None, []), (weights, ["WEIGHTS"])):
        tape = Tape(device, kernels)  # type: ignore[arg-type]
        combine(tape, y, out, weights=given, used=2, scale=0.5)
        assert tape.launches
        assert kernels.defines == define
        buffers = [t.buffer for t in (y, given) if t is not None]
        assert list(kernels.args) == [*buffers, 2, 16, 0.5, out.buffer]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"used": None}, r"combine: missing \['used'\], .* parameters \[\], with no defines"),
        ({"n_rows": 1}, r"missing \[\], not among its parameters \['n_rows'\]"),
        ({"used": 2.0}, r"used: .*float"),
        ({"scale": "out"}, r"scale: "),
        ({"out": 1}, r"out: 1, expected a buffer of floats"),
        ({"y": "ids"}, r"y: .*int32.*, expected a buffer of floats"),
    ],
)  # fmt: skip
def test_what_does_not_fit(device: Device, change: dict[str, object], message: str) -> None:
    tensors = {"out": empty(device, (2, 16)), "ids": empty(device, (2, 16), np.int32)}
    args = {
        "y": empty(device, (4, 16)),
        "used": 2,
        "n_cols": 16,
        "scale": 1.0,
        "out": tensors["out"],
    }
    changed = {name: tensors.get(str(value), value) for name, value in change.items()}
    with pytest.raises(ArgumentError, match=message):
        signature("matrix/moe.cl", "combine").bind({**args, **changed}, [])
