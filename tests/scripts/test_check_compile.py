"""Programs compile in seconds, on every kind of processor: scripts/check_compile.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from check_compile import LIMIT, PROCESSORS, Job, compile_all, jobs
from compiled_before import Compiled

from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.kernels.opencl.program import Spec
from gguf_serve.kernels.quantization.quants import by_name

EVERY = 150  # of the programs that are compiled daily
DRIVERS = [info.platform for info in list_devices() if info.kind == "cpu"]

pytestmark = pytest.mark.skipif(not DRIVERS, reason="no OpenCL driver for CPUs")


def unrolled(driver: str) -> list[Job]:
    """Programs that took LLVM 18 to 163 s where vectors of work-items were made of them."""
    if "Intel" not in driver:
        return []
    spans = ("ACT_INT", "X_SPAN=8", "GLU_SILU", "QUANTIZE_OUT", "NT=128", *by_name("Q4_K").defines)
    bytes = ("ACT_INT", "X_BYTES", "NT=64", *by_name("Q8_0").defines)
    return [
        Job(
            driver, name,
            Spec("matrix/matmul_simd.cl", (*defines, "PREFETCH_BYTES=0", *kind.forms)),
        )
        for defines in (spans, bytes)
        for name, kind in PROCESSORS.items()
        if kind.forms
    ]  # fmt: skip


def test_programs_compile_in_seconds() -> None:
    wanted = [job for driver in dict.fromkeys(DRIVERS) for job in unrolled(driver)]
    wanted += jobs(PROCESSORS, [])[::EVERY]
    results = list(compile_all(wanted, 1, Compiled()))
    assert [r for r in results if r.error or r.seconds > LIMIT] == []


def test_what_does_not_compile_is_said() -> None:
    bad = Job(DRIVERS[0], "native", Spec("matrix/lowrank.cl", ("x=1+",)))
    good = Job(DRIVERS[0], "native", Spec("matrix/lowrank.cl", ("TIMES=1",)))
    failed, built = compile_all([bad, good], 1, Compiled())
    assert "error" in failed.error
    assert built.error == ""
    assert built.seconds > 0


def test_what_has_been_compiled_is_not_again(tmp_path: Path) -> None:
    """Nor what is the same after the preprocessor; a time that is over begins nothing."""
    state = tmp_path / "state.jsonl"
    spec = Spec("matrix/lowrank.cl", ("TIMES=1",))
    job, same, other = (
        Job(DRIVERS[0], "native", Spec(spec.source, (*spec.defines, *more)))
        for more in ((), ("NOBODY_READS_THIS",), ("float=double",))
    )
    (first,) = compile_all([job], 1, Compiled(state))
    assert [r.job for r in compile_all([job, same, other], 1, Compiled(state), 0.0)] == [job]
    twin, last = compile_all([same, other], 1, Compiled(state))
    assert (first.is_new, twin.is_new, last.is_new) == (True, False, True)
    assert twin.seconds == first.seconds
    assert len(state.read_text().splitlines()) == 3
