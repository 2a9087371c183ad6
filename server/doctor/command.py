"""``serve doctor``: what this machine has, lacks and can serve, for people and as JSON."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click
import msgspec

from gguf_serve.engine.loading.examination import Examination, Examined, Fit, examine
from gguf_serve.server.doctor import other_commands
from gguf_serve.server.version import NAME, VERSION

GIB = 2**30


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def doctor(as_json: bool) -> None:
    """Devices and drivers, what is missing and what installs it, how fast memory and arithmetic
    are, and which sizes of models fit. It takes about ten seconds for each device; nothing else
    should run meanwhile. The exit code is 1 if no device works."""
    found = examine()
    notices = other_commands.notices()
    if as_json:
        click.echo(json.dumps(as_object(found, notices), indent=2))
    else:
        for line in report(found, notices):
            click.echo(line)
    sys.exit(0 if any(one.measured for one in found.devices) else 1)


def as_object(found: Examination, notices: Sequence[str]) -> dict[str, Any]:
    """JSON's object; sizes in bytes, rates by the second."""
    return {**about(), **msgspec.to_builtins(found), "notices": list(notices)}


def about() -> dict[str, str]:
    return {
        "version": VERSION,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def report(found: Examination, notices: Sequence[str]) -> Iterator[str]:
    its = about()
    yield f"{NAME} {its['version']}, Python {its['python']}, {its['system']}"
    yield from section("Devices", [line for one in found.devices for line in device_lines(one)])
    chosen = " and ".join(str(one.info.index) for one in found.devices if one.is_chosen)
    if chosen:
        yield f"  A start takes {chosen}: {found.reason}."
    yield from section("Missing", found.missing)
    yield from section("To know", notices)
    if chosen:
        yield from section("Models", fit_lines(found))


def section(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield title
    for line in lines:
        yield f"  {line}"


def device_lines(one: Examined) -> Iterator[str]:
    info, measured = one.info, one.measured
    memory = f"{one.free_bytes / GIB:.1f} GiB free"
    yield f"{info.index}: {info.name} ({info.kind}, {memory}, {info.compute_units} compute units)"
    yield f"   {info.platform}, {info.driver}"
    if measured is None:
        yield f"   does not work: {one.fault}"
        return
    yield (
        f"   reads {measured.bytes_per_second / 1e9:.1f} GB and does "
        f"{measured.macs_per_second / 1e9:.0f} billion multiply-adds a second; kernels of the "
        f"{measured.family} family, activations in {measured.activations}"
    )
    if measured.forms:
        yield f"   has multiplied right by {measured.forms}"


def fit_lines(found: Examination) -> list[str]:
    """A table: parameters by file types."""
    names = list(dict.fromkeys(fit.file_type for fit in found.fits))
    rows = {n: [fit for fit in found.fits if fit.n_parameters == n] for n in sizes(found.fits)}
    lines = ["parameters" + "".join(f"{name:>24}" for name in names)]
    lines += [
        f"{n / 1e9:>9g}B" + "".join(f"{cell(fit):>24}" for fit in row) for n, row in rows.items()
    ]
    return [
        *lines,
        f"An eighth is added for context, and {found.spare_bytes / GIB:g} GiB of each device "
        "stays free.",
        "Tokens a second (t/s) are the most that memory allows, of a model that uses all its "
        "weights.",
    ]


def sizes(fits: Sequence[Fit]) -> list[float]:
    return list(dict.fromkeys(fit.n_parameters for fit in fits))


def cell(fit: Fit) -> str:
    size = f"{fit.n_bytes / GIB:.1f} GiB"
    if not fit.fits:
        return f"{size}, no room"
    rate = fit.generated_per_second
    return f"{size}, {rate:.{0 if rate >= 10 else 1}f} t/s" if rate else size
