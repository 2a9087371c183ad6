"""serve --compile-only: fill caches for later starts, as when an image is built."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gguf_serve.engine.errors import EngineError
from gguf_serve.server.configure import SettingsError, engine_options
from gguf_serve.server.launch import demo_path, load_model, warm
from gguf_serve.server.logs import set_up_logging
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.summary import progress_bar

KEPT_SECONDS = 600.0  # until a disk is given up


def compile_only(settings: Settings) -> int:
    """The exit code: 0 if every program is in the cache, and --warmup-prompt in --cache-disk."""
    set_up_logging(settings)
    from gguf_serve.engine.engine import compile_model

    try:
        path = demo_path(lambda fraction: None) if settings.demo else Path(settings.model or "")
        with progress_bar(f"Compiling for {path.name}") as draw:
            n_missing, n_programs = compile_model(path, engine_options(settings), draw)
        click.echo(f"{n_programs} programs are ready, {n_missing} of them compiled now")
        if settings.warmup_prompt is not None:
            click.echo(f"{fill_disk_cache(settings)} tokens of --warmup-prompt are in --cache-disk")
    except (EngineError, SettingsError) as error:
        print(f"serve: {error}", file=sys.stderr)
        return 1
    return 0


def fill_disk_cache(settings: Settings) -> int:
    """Compute --warmup-prompt and keep it; how many tokens it has."""
    engine = load_model(settings, lambda fraction: None)
    try:
        n, least = warm(engine, settings), settings.engine.cache_disk_min_tokens
        if n < least:
            raise SettingsError(
                f"--warmup-prompt has {n} tokens, fewer than --cache-disk-min-tokens {least}"
            )
        if not engine.wait_until_kept(KEPT_SECONDS):
            raise EngineError(f"--cache-disk {settings.engine.cache_disk} cannot be filled")
        return n
    finally:
        engine.close()
