"""What scripts/check_gpu_compile.py compiles, and how it reads what compilers say."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_gpu_compile import HOT, Use, compile_for, find_tools, read_amd, read_nvidia, wanted

from gguf_serve.kernels.attention.kv import KV_TYPES
from gguf_serve.kernels.opencl.program import Spec
from gguf_serve.kernels.opencl.sources import SOURCES, effective
from gguf_serve.kernels.quantization.quants import SUPPORTED_TYPES, by_name

AMD = """
	s_endpgm
amdhsa.kernels:
  - .agpr_count:     0
    .group_segment_fixed_size: 512
    .name:           sort
    .private_segment_fixed_size: 0
    .symbol:         sort.kd
    .vgpr_count:     9
  - .agpr_count:     0
    .group_segment_fixed_size: 12416
    .name:           matmul
    .private_segment_fixed_size: 132
    .symbol:         matmul.kd
    .vgpr_count:     72
amdhsa.target:   amdgcn-amd-amdhsa--gfx1100
"""
NVIDIA = """
ptxas info    : Compiling entry function 'sort' for 'sm_86'
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers, used 1 barriers, 1540 bytes smem
ptxas info    : Compiling entry function 'route' for 'sm_86'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 26 registers, used 0 barriers
"""


MATRICES = ("matrix/matmul_mma.cl", "matrix/matmul_simt.cl", "matrix/matvec_simt.cl")
TARGET, WITHOUT_TILES = "gfx1100", "gfx1030"


def of_type(name: str, spec: Spec, source: str) -> bool:
    """Whether a program of this source is for a tensor type."""
    those = effective(source, by_name(name).defines)
    return spec.source == source and {*those} <= {*spec.defines}


@pytest.fixture(scope="module")
def specs() -> list[Spec]:
    return sorted({*wanted(TARGET), *wanted(WITHOUT_TILES)})


def test_every_type_is_compiled(specs: list[Spec]) -> None:
    defines = {(v.source, define) for v in specs for define in v.defines}
    for source in MATRICES:
        missing = [t for t in SUPPORTED_TYPES if not any(of_type(t, v, source) for v in specs)]
        floats = source == "matrix/matmul_mma.cl"  # whose products are those of matmul_simt.cl
        assert [t for t in missing if not (floats and by_name(t).is_float)] == []
    assert {
        ("attention/attention_simt.cl", f"K_TYPE=KV_{name.upper()}") for name in KV_TYPES
    } <= defines
    assert {v.source for v in specs} >= set(HOT)
    assert all("SIMT" in v.defines and (SOURCES / v.source).exists() for v in specs)


def test_what_compilers_say_of_a_kernel() -> None:
    assert read_amd(AMD) == {"sort": Use(9, 0, 512), "matmul": Use(72, 132, 12416)}
    assert read_nvidia(NVIDIA) == {"sort": Use(38, 8, 1540), "route": Use(26, 0, 0)}
    for read in (read_amd, read_nvidia):
        with pytest.raises(RuntimeError, match="no kernel in the"):
            read("")


def test_sums_of_hot_kernels_are_in_registers(specs: list[Spec], tmp_path: Path) -> None:
    tools = find_tools()
    if tools is None:
        pytest.skip("clang with libclc is not there")
    few = [
        v for v in specs
        if v.source in HOT
        and "SHORTS_SDOT2" not in v.defines  # which is the other target's
        and (
            {"K_TYPE=KV_F16", "HD=128"}.intersection(v.defines)
            or any(of_type(name, v, source) for name in ("Q4_K", "F16") for source in MATRICES)
        )
    ]  # fmt: skip
    uses = {v: compile_for(TARGET, v, tools, tmp_path) for v in few}
    assert {v.source for v in few} == set(HOT)
    assert [v for v, found in uses.items() if any(use.scratch for use in found.values())] == []
