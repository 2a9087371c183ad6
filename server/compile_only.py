"""serve --compile-only: fill the program cache for later starts, as when an image is built."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gguf_serve.engine.errors import EngineError
from gguf_serve.server.configure import engine_options
from gguf_serve.server.launch import demo_path
from gguf_serve.server.logs import set_up_logging
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.summary import progress_bar


def compile_only(settings: Settings) -> int:
    """The exit code: 0 if every program is in the cache."""
    set_up_logging(settings)
    from gguf_serve.engine.engine import compile_model

    try:
        path = demo_path(lambda fraction: None) if settings.demo else Path(settings.model or "")
        with progress_bar(f"Compiling for {path.name}") as draw:
            n_missing, n_programs = compile_model(path, engine_options(settings), draw)
    except EngineError as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    click.echo(f"{n_programs} programs are ready, {n_missing} of them compiled now")
    return 0
