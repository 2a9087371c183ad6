"""Fixtures: every OpenCL device of this machine, in each kernel family that it can run.

A CPU runs both families, so that the code for GPUs is never untested.

Every program has fewer declarations for PoCL to read than it has outside the tests. For each, PoCL
reads Clang's of all functions that OpenCL has, 15,000 of them (opencl-c.h): 0.1 s of the 0.3 that
a program of these tests takes, of which there are two thousand. Here it is told that it has read
them, and finds those that the kernels call at the beginning of the source, in the same words. The
code that it makes is the same, and it is made once: a program that one test builds by itself is
the one that a model of another has.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.kernels.opencl.program import SOURCES, Programs, Spec

HEADERS = Path("/usr/share/pocl/include")  # of Debian's package
READ = "_OPENCL_H_"  # defined where opencl-c.h has been read
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
FUNCTION = re.compile(
    r"^([\w* ]*__ovld [^;#]*?\b(\w+)\s*\((?:[^;#()]|\([^)]*\))*\);\n)", re.MULTILINE
)


@functools.cache
def declarations(source: str) -> str:
    """Types, constants, and the functions whose names are in this .cl file or what it includes;
    nothing without PoCL's headers."""
    begin, *parts = _header()
    kernels = _with_included(source)
    called = set(re.findall(r"[A-Za-z_]\w*", kernels))
    begun = set(re.findall(r"([A-Za-z_]\w*)\s*##", kernels))  # a macro adds a number of lanes
    for function, name, between in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        if name in called or name.rstrip("0123456789") in begun:
            begin += function
        begin += between
    return begin


@functools.cache
def _header() -> list[str]:
    """opencl-c.h: what comes before the first function, then of each function its declaration, its
    name, and what comes before the next."""
    try:
        guarded = f"#ifndef {READ}" in (HEADERS / "_clang_opencl.h").read_text(encoding="utf-8")
        base = _without_comments(HEADERS / "opencl-c-base.h")
        every = _without_comments(HEADERS / "opencl-c.h")
    except OSError:
        return [""]
    whole = f"#undef {READ}\n" + every.replace('#include "opencl-c-base.h"\n', base)
    return FUNCTION.split(re.sub(r"\n{2,}", "\n", whole)) if guarded else [""]


def _with_included(source: str) -> str:
    text = _without_comments(SOURCES / source)
    return text + "".join(map(_with_included, re.findall(r'#include "(.+)"', text)))


def _without_comments(path: Path) -> str:
    return COMMENT.sub("", path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session", autouse=True)
def called_functions() -> Iterator[None]:
    """Programs whose functions are declared to PoCL by the source itself."""
    text, options = Programs._text, Programs._options

    def declared(programs: Programs, spec: Spec) -> str:
        return declarations(spec.source) if programs.are_kept_by_driver else ""

    def declared_text(programs: Programs, spec: Spec) -> str:
        begin, rest = declared(programs, spec), text(programs, spec)
        return f'{begin}\n#line 1 "{spec.source}"\n{rest}' if begin else rest

    def declared_options(programs: Programs, spec: Spec) -> list[str]:
        return options(programs, spec) + [f"-D{READ}"] * bool(declared(programs, spec))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "_text", declared_text)
        patch.setattr(Programs, "_options", declared_options)
        yield


FAMILIES = {"cpu": ("simd", "simt")}
VARIANTS = [
    pytest.param(
        (str(info.index), family), id=f"{info.platform.split()[0].split('(')[0].lower()}-{family}"
    )
    for info in list_devices()
    for family in FAMILIES.get(info.kind, ("simt",))
] or [pytest.param(None, marks=pytest.mark.skip(reason="no OpenCL device"))]
SIMT = [variant for variant in VARIANTS if variant.values[0] and variant.values[0][1] == "simt"]
SECOND = {  # Intel's driver has simd daily, PoCL simt
    variant.values[0] for variant in VARIANTS if variant.id in ("intel-simt", "portable-simd")
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of whole models run daily with each family on one driver, since programs are tested
    one by one on both: those marked ``whole_models(*everywhere)`` are slow on the other, but for
    the models that are named."""
    for item in items:
        mark, call = item.get_closest_marker("whole_models"), getattr(item, "callspec", None)
        if mark is None or call is None or call.params["device"] not in SECOND:
            continue
        if not any(value in mark.args for value in call.params.values()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", params=VARIANTS)
def device(request: pytest.FixtureRequest) -> Device:
    index, family = request.param
    return open_device(index, family=family, byte_codes="none")


@pytest.fixture(scope="session")
def programs(device: Device) -> Programs:
    return Programs(device)
