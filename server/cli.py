"""The command ``serve``: options in groups, multi-letter short options as llama.cpp's."""

from __future__ import annotations

import gc
import os
import shlex
import sys
from typing import Any

import click

from gguf_serve.server.options.arguments import (
    Findings,
    config_paths,
    flags_of,
    from_environment,
    from_files,
    own_arguments,
    words,
)
from gguf_serve.server.options.click_options import FINDINGS, click_option
from gguf_serve.server.options.settings import GROUPS, Settings
from gguf_serve.server.options.stated import (
    Stated,
    default_text,
    made,
    placeholder,
    spellings,
    stated,
)
from gguf_serve.server.sources import shortcuts

EXAMPLES = """\b
Examples:
  serve -m model.gguf
  serve -hf ggml-org/gemma-3-1b-it-GGUF
  serve -m model.gguf -c 8192 -np 4 --port 8000
  serve --demo
  serve doctor          what this machine has, lacks and can serve
"""

MAGIC = b"GGUF"
DOCTOR = "doctor"  # a command of its own
OLLAMA = "ollama"  # in what names one of its models or files

OPTIONS = tuple(stated(Settings))
FLAGS = flags_of(OPTIONS)
OWN = ("-h", "--help", "--usage", "--version")  # of the command, without values


class ServeCommand(click.Command):
    """Tells everything that is wrong with a command line at once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args[:1] == [DOCTOR]:
            from gguf_serve.server.doctor.command import doctor

            doctor.main(args[1:], f"{ctx.command_path} {DOCTOR}")
        args = self.with_sources(ctx, args)
        findings = ctx.meta[FINDINGS] = Findings()
        known = {flag: given.n_values for flag, given in FLAGS.items()}
        known |= dict.fromkeys(OWN, range(1))
        # Those that are less counted first: files, variables, then the command line.
        values = from_files(config_paths(os.environ), FLAGS, findings)
        values |= from_environment(os.environ, OPTIONS, findings)
        ctx.default_map = words(values, OPTIONS)
        try:
            rest = super().parse_args(ctx, own_arguments(args, known, findings))
        except click.UsageError as error:
            findings.refusals.append(error.format_message())
            rest = []
        if not ctx.resilient_parsing:
            findings.refusals += [unexpected(word) for word in rest[:1]]
            tell(ctx, findings)
        return rest

    def with_sources(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Shortcuts, and what Ollama keeps beside a model, as options."""
        args = shortcuts.expanded(args)
        if not any(OLLAMA in arg for arg in args):
            return args
        from gguf_serve.server.configure import SettingsError
        from gguf_serve.server.sources import ollama_options

        try:
            return ollama_options.expanded(args)
        except SettingsError as error:
            raise click.UsageError(str(error), ctx=ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {name: [] for name in GROUPS}
        for one in OPTIONS:
            groups[one.option.group].append(help_record(one))
        own = [param.get_help_record(ctx) for param in self.get_params(ctx)[len(OPTIONS) :]]
        groups[GROUPS[-1]] += [record for record in own if record is not None]
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records, col_max=36)


def help_record(one: Stated) -> tuple[str, str]:
    """The option's two columns: flags and value, then words, default and variable."""
    option = one.option
    flags = ", ".join(spellings(option))
    shown = default_text(one.default, option)
    notes = [*([f"default {shown}"] if shown else []), *([option.env] if option.env else [])]
    help = f"{option.help} ({'; '.join(notes)})" if notes else option.help
    return f"{flags} {placeholder(option)}".rstrip(), help


def unexpected(word: str) -> str:
    """What is wrong with a word that belongs to no option."""
    if word.endswith(".gguf") or os.path.exists(word):
        return f"the model is given with -m: type serve -m {shlex.quote(word)}"
    return f"unexpected {word!r:.80}: it belongs to no option"


def tell(ctx: click.Context, findings: Findings) -> None:
    """Warnings, then UsageError with all that cannot be used."""
    for warning in findings.lines():
        click.echo(f"serve: {warning}", err=True)
    refusals = findings.refusals
    if refusals:
        from gguf_serve.server.configure import problems

        refusals += problems(made(Settings, ctx.params))
        several = f"{len(refusals)} things cannot be used:"
        message = refusals[0] if len(refusals) == 1 else "\n  ".join([several, *refusals])
        raise click.UsageError(message, ctx=ctx)


def run(**values: Any) -> None:
    """Serve a GGUF model with OpenAI's API."""
    if values["demo"]:
        values |= {name: value for name, value in shortcuts.DEMO.items() if values[name] is None}
    settings = made(Settings, values)
    if settings.list_devices:
        sys.exit(list_devices())
    if settings.arch_list:
        return list_architectures()
    if settings.completion_bash:
        return print_completion()
    if settings.cache_list:
        return list_cached()
    given = {
        "-m": settings.model, "-hf": settings.hf_repo, "-mu": settings.model_url,
        "-dr": settings.docker_repo, "--demo": settings.demo or None,
    }  # fmt: skip
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise click.UsageError(f"{' and '.join(named)} name a model each: give one of them")
    if not named:
        raise click.UsageError(
            "no model: type serve -m FILE.gguf, serve -hf USER/NAME, or serve --demo to try one out"
        )
    sys.exit(start(settings))


def start(settings: Settings) -> int:
    from gguf_serve.engine.ahead import begin_ahead

    if settings.demo or (settings.model is not None and is_model(settings.model)):
        engine = settings.engine
        named = engine.device or engine.override_tensor or settings.mmproj_device
        begin_ahead(names_device=bool(named))
    from gguf_serve.server.configure import SettingsError, problems
    from gguf_serve.server.sources.locate import located

    gc.disable()  # until the model is there: modules and vocabularies leave nothing to find
    try:
        if found := problems(settings):
            raise SettingsError("\nserve: ".join(found))
        settings = located(settings)
        check_model_file(settings.model)
        if settings.compile_only:
            from gguf_serve.server.compile_only import compile_only

            return compile_only(settings)
        from gguf_serve.server.launch import serve

        return serve(settings)
    except SettingsError as error:
        click.echo(f"serve: {error}", err=True)
        return 1
    finally:
        gc.enable()


def is_model(path: str) -> bool:
    try:
        return magic(path) == MAGIC
    except OSError:  # check_model_file() says what is wrong
        return False


def magic(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(MAGIC))


def check_model_file(path: str | None) -> None:
    """What can be known before anything is imported or bound."""
    from gguf_serve.server.configure import SettingsError, reason

    if path is None:
        return
    try:
        found = magic(path)
    except OSError as error:
        raise SettingsError(f"cannot read the model {path}: {reason(error)}") from None
    if found != MAGIC:
        raise SettingsError(f"{path} is not a GGUF file: it begins with {found!r}")


def list_devices() -> int:
    """The exit code: 1 if there is none."""
    from gguf_serve.engine.engine import free_memory, no_driver
    from gguf_serve.engine.engine import list_devices as found

    devices = found()
    for device in devices:
        memory = f"{device.memory_bytes / 2**30:.1f} GiB"
        if device.kind == "cpu":
            memory = f"{free_memory(device) / 2**30:.1f} GiB free"
        units = f"{device.compute_units} compute units"
        click.echo(f"{device.index}: {device.name} ({device.kind}, {memory}, {units})")
        click.echo(f"   {device.platform}, {device.driver}")
        click.echo(f"   {device.capabilities}")
    if not devices:
        click.echo(f"serve: {no_driver()}", err=True)
    return 0 if devices else 1


def list_architectures() -> None:
    from gguf_serve.engine.architecture.table import ARCHITECTURES

    for name in sorted(ARCHITECTURES):
        click.echo(name)


def print_completion() -> None:
    words = " ".join(
        ["--help", "--version", *(f for one in OPTIONS for f in spellings(one.option))]
    )
    click.echo(
        "_gguf_serve() {\n"
        '  local word="${COMP_WORDS[COMP_CWORD]}"\n'
        '  case "$word" in\n'
        f'    -*) COMPREPLY=($(compgen -W "{words}" -- "$word")) ;;\n'
        '    *) COMPREPLY=($(compgen -f -- "$word")) ;;\n'
        "  esac\n"
        "}\n"
        "complete -o filenames -F _gguf_serve serve gguf-serve"
    )


def list_cached() -> None:
    from gguf_serve.server.sources import ollama
    from gguf_serve.server.sources.hub import cached_models

    models = list(cached_models())
    click.echo(f"number of models in cache: {len(models)}")
    for number, name in enumerate(models, 1):
        click.echo(f"{number:4}. {name}")
    of_ollama = sorted(name for folder in ollama.folders() for name in ollama.names(folder))
    for name in of_ollama:
        click.echo(f"      ollama:{name}")


def print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from gguf_serve.server.version import NAME, VERSION

        click.echo(f"{NAME} {VERSION}")
        ctx.exit()


main = ServeCommand(
    "serve",
    callback=run,
    help=f"{run.__doc__}\n\n{EXAMPLES}",
    params=[
        *(click_option(one.name, one.option) for one in OPTIONS),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=print_version,
            help="print name and version and exit",
        ),
    ],
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "allow_extra_args": True,  # so that they are refused in words of our own
    },
)

if __name__ == "__main__":
    main()
