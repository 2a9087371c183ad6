"""What a person sees at start-up: a progress bar, then what is served and where."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click

from gguf_serve.server.interface import Engine
from gguf_serve.server.logs import Console

log = logging.getLogger("gguf_serve.server")


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[float], None]]:
    """A function that takes the fraction done; draws on a terminal, else logs the label."""
    handlers = logging.getLogger().handlers if log.isEnabledFor(logging.INFO) else []
    console = next((handler for handler in handlers if isinstance(handler, Console)), None)
    if console is not None and console.stream is sys.stderr and sys.stderr.isatty():
        with console.bar(label) as draw:
            yield draw
    else:
        log.info(label)
        yield lambda fraction: None


def summary(engine: Engine, model_name: str, addresses: Sequence[str]) -> list[str]:
    info = engine.info
    types = ", ".join(f"{name} x {count}" for name, count in info.tensor_types.items())
    size = f"{quantity(info.n_params)} parameters, {mebibytes(info.n_bytes)}"
    rows = [
        ("model", f"{model_name} ({info.name})" if info.name != model_name else model_name),
        ("architecture", f"{info.architecture}, {size}"),
        ("weights", f"{info.file_type}; tensors: {types}"),
        ("device", f"{info.device_name} ({info.driver})"),
        ("context", f"up to {engine.n_ctx} tokens in each of {slots(engine.n_slots)}"),
        ("KV cache", mebibytes(info.kv_bytes)),
        ("loaded in", info.loading),
        *(("listening", address) for address in addresses),
    ]
    return [f"{name:<13} {value}" for name, value in rows]


def show(lines: Sequence[str]) -> None:
    for line in lines:
        if sys.stderr.isatty():
            click.echo(line, err=True)
        else:
            log.info(line)


def slots(n: int) -> str:
    return "1 slot" if n == 1 else f"{n} slots"


def quantity(n: int) -> str:
    """1540000000 as 1.54B."""
    for factor, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= factor:
            return f"{n / factor:.3g}{letter}"
    return str(n)


def mebibytes(n: int) -> str:
    return f"{n / 2**20:,.1f} MiB" if n < 2**30 else f"{n / 2**30:,.2f} GiB"
