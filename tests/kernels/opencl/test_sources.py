"""Defines that are left out of programs, for they change nothing."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from gguf_serve.kernels.matrix.moe import Routing
from gguf_serve.kernels.opencl.sources import SOURCES, effective, is_scalar, with_included
from gguf_serve.kernels.quantization.quants import by_name

PROGRAMS = [str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.cl")]
KERNELS = [
    source
    for source in PROGRAMS
    if re.search(r"^kernel\b", with_included(source)[source], re.MULTILINE)
]
DEFINES = (
    *by_name("IQ2_XS").defines, *Routing(8, 2).defines,
    "HD=64", "HDV=32", "PAGE=32", "K_TYPE=KV_F16", "V_TYPE=OTHER", "OTHER=KV_Q8_0", "G=1", "WG=32",
    "NT=1", "DOT_PAIRS_512", "MADD_BYTES_256", "ADD", "BIAS", "REPEAT=1", "ACT_SILU", "TAPS=2",
)  # fmt: skip


def preprocessed(source: str, defines: tuple[str, ...]) -> str:
    command = ["cc", "-E", "-P", "-x", "c", f"-I{SOURCES}", *(f"-D{d}" for d in defines)]
    done = subprocess.run([*command, str(SOURCES / source)], capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C preprocessor")
@pytest.mark.parametrize("source", KERNELS)
def test_the_text_is_the_same_without_them(source: str) -> None:
    left = effective(source, DEFINES)
    assert set(left) < set(DEFINES)
    assert preprocessed(source, left) == preprocessed(source, tuple(sorted(DEFINES)))


def test_what_reads_blocks_is_told_the_type() -> None:
    of_type = by_name("Q4_K").defines
    assert "TYPE_Q4_K" in effective("quantization/pack.cl", of_type)
    assert "TYPE_Q4_K" not in effective("matrix/matmul_simd.cl", of_type)


def test_a_define_that_another_one_stands_for() -> None:
    assert "OTHER=KV_Q8_0" in effective("attention/rope.cl", DEFINES)
    assert "OTHER=KV_Q8_0" not in effective("attention/rope.cl", ("OTHER=KV_Q8_0", "HD=64"))


def test_one_row_at_a_time_in_both_families() -> None:
    assert [source for source in PROGRAMS if is_scalar(source)] == ["matrix/embed.cl"]
