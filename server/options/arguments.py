"""The command line, variables and configuration files as one set of values.

Options of ours are left to click under the spelling that is stated; llama-server's others are taken
or refused by llama_options.py. Everything that is wrong is gathered, so that it is told at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct, field

from gguf_serve.engine.option import FALSE, TRUE, Option
from gguf_serve.server.options.llama_options import FLAGS, VARIABLES, Foreign, judged
from gguf_serve.server.options.stated import Stated

PREFIX = "LLAMA_ARG_"


class Findings(Struct):
    """What is to be said of what was given: hints by their reason, warnings, what is refused."""

    hints: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)  # of values of variables and files

    def hint(self, shown: str, reason: str) -> None:
        self.hints.setdefault(reason, []).append(shown)

    def lines(self) -> list[str]:
        """The warnings, one for each reason."""
        return self.warnings + [
            f"{', '.join(shown)} change{'s' if len(shown) == 1 else ''} nothing here: {reason}"
            for reason, shown in self.hints.items()
        ]

    def judge(self, shown: str, row: Foreign, value: str) -> None:
        verdict = judged(row, value)
        if verdict == "hint":
            self.hint(shown, row.reason)
        elif verdict == "refused":
            self.refusals.append(f"{shown} is not supported: {row.reason}")


class Flag(Struct, frozen=True):
    """One of our flags: of which option, and what it makes of one that has no value."""

    stated: Stated
    on: bool = True

    @property
    def n_values(self) -> range:
        """How many it may have: 0 for a flag, 0 or 1 where one is given after "=" alone."""
        option = self.stated.option
        most = 0 if option.type is None else 1 + option.pair
        return range(0 if option.bare is not None else most, most + 1)


def flags_of(options: Iterable[Stated]) -> dict[str, Flag]:
    found = dict[str, Flag]()
    for one in options:
        for given in one.option.flags:
            on, _, off = given.strip().partition("/")
            found |= {flag: Flag(one, flag == on) for flag in (on, off) if flag}
    return found


def spelled(name: str) -> str:
    """--ctx_size as --ctx-size; those with one dash have no underscores."""
    if name == "--usage":
        return "--help"
    return name.replace("_", "-") if name.startswith("--") else name


def is_value(word: str) -> bool:
    """Whether a word can be the value of an option that may have none."""
    return not word.startswith("-") or word[1:2].isdigit() or word == "-"


def own_arguments(args: Sequence[str], known: Mapping[str, range], findings: Findings) -> list[str]:
    """The arguments that are for our options, in the order given. ``known``: their flags, with the
    number of values that each may have: the least of them follow it, whatever they look like.
    Options are exact names, so that -mx 0 is not -m x."""
    kept: list[str] = []
    rest = list(reversed(args))
    while rest:
        arg = rest.pop()
        name, equals, value = arg.partition("=")
        name = spelled(name)
        if len(name) > 3 and name not in known and name not in FLAGS and name[1:] in known:
            name = name[1:]  # --ngl for -ngl
        if arg == "--":
            return [*kept, arg, *reversed(rest)]
        if not arg.startswith("-") or arg == "-":
            kept.append(arg)
        elif name in known:
            n = known[name].start - len(equals)
            if (equals and not known[name][-1]) or n > len(rest):
                findings.refusals.append(miscounted(name, known[name], value))
                continue
            kept.append(name + equals + value)
            kept.extend(rest.pop() for _ in range(n))
        elif name in FLAGS:
            row, fixed = FLAGS[name]
            if fixed is None and not equals and rest and is_value(rest[-1]):
                value = rest.pop()
            findings.judge(name, row, value if fixed is None else fixed)
        else:
            findings.refusals.append(unknown(name, known))
            if not equals and rest and is_value(rest[-1]):
                rest.pop()
    return kept


def miscounted(name: str, n_values: range, value: str) -> str:
    """What is wrong with an option that lacks a value, or has one too many."""
    if not n_values[-1]:
        return f"{name}: expected no value, not {value!r:.100}"
    expected = "a value" if n_values[-1] == 1 else f"{n_values[-1]} values"
    return f"{name}: expected {expected} after it"


def unknown(name: str, known: Iterable[str]) -> str:
    similar = close(name, [*known, *FLAGS])
    return f"No such option '{name}'" + (f" ({' or '.join(similar)}?)" if similar else "")


def close(name: str, known: Iterable[str]) -> list[str]:
    """Up to two names that look like it."""
    from difflib import get_close_matches  # seldom needed

    return get_close_matches(name, list(known), 2, 0.7)


def from_environment(
    environ: Mapping[str, str], options: Iterable[Stated], findings: Findings
) -> dict[str, str]:
    """The values of options by their names; empty variables are none."""
    found, read = dict[str, str](), set[str]()
    for one in options:
        for name, value in variables_of(one.option):
            read.add(name)
            given = environ.get(name, "")
            if given:
                found[one.name] = given if value is None else value
                findings.origins[one.name] = name
    for name, (row, fixed) in VARIABLES.items():
        given = environ.get(name, "")
        if given:
            findings.judge(f"{name}={given}", row, given if fixed is None else fixed)
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in read and name not in VARIABLES:
            hint = "".join(f" ({similar}?)" for similar in close(name, read)[:1])
            findings.warnings.append(f"{name} is read by nobody{hint}")
    return found


def variables_of(option: Option) -> Iterator[tuple[str, str | None]]:
    """Names of variables with the value that they mean, None: their own. Whatever LLAMA_ARG_NO_X
    is set to, it turns X off, as with llama-server."""
    if option.env is None:
        return
    yield option.env, None
    if (
        option.env.startswith(PREFIX)
        and option.type is None
        and any("/" in flag for flag in option.flags)
    ):
        yield PREFIX + "NO_" + option.env.removeprefix(PREFIX), "off"


def from_files(
    paths: Iterable[str], flags: Mapping[str, Flag], findings: Findings
) -> dict[str, str]:
    """Values from llama.cpp's ``config.ini``, by the names of options. Keys that are no options of
    ours are passed over: the file is for all of llama.cpp's programs."""
    keys = {flag.lstrip("-"): given for flag, given in flags.items()}
    keys |= {given.stated.option.env: given for given in flags.values() if given.stated.option.env}
    found: dict[str, str] = {}
    for path in paths:
        try:
            lines = read_lines(path)
        except (OSError, UnicodeDecodeError) as error:
            findings.refusals.append(f"cannot read {path}: {error}")
            continue
        for key, value in entries(lines):
            if key in keys:
                given = keys[key]
                found[given.stated.name] = value if given.on else opposite(value)
                findings.origins[given.stated.name] = f"{key} in {path}"
    return found


def read_lines(path: str) -> list[str]:
    if not os.path.isfile(path):
        return []
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def entries(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Keys and values of the sections [*] and then [default], which is also where no section is."""
    sections: dict[str, list[tuple[str, str]]] = {"*": [], "default": []}
    section = "default"
    for line in lines:
        text = without_comment(line)
        if text.startswith("[") and text.endswith("]"):
            section = text[1:-1].strip()
        elif "=" in text:
            key, _, value = text.partition("=")
            sections.setdefault(section, []).append((key.strip(), value.strip()))
    yield from sections["*"]
    yield from sections["default"]


def without_comment(line: str) -> str:
    cuts = [at for mark in ";#" if (at := line.find(mark)) >= 0]
    return line[: min(cuts, default=len(line))].strip()


def opposite(value: str) -> str:
    word = value.lower()
    return "off" if word in TRUE else "on" if word in FALSE else value


def config_paths(environ: Mapping[str, str]) -> list[str]:
    """Where llama.cpp looks; a later file counts more."""
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return ["/etc/llama.cpp/config.ini", os.path.join(home, "llama.cpp", "config.ini")]


def words(values: Mapping[str, str], options: Iterable[Stated]) -> dict[str, object]:
    """Texts as click's defaults: a list for an option that may be given again, or has two."""
    kinds = {one.name: one.option for one in options}
    return {
        name: [text] if kinds[name].multiple else text.split() if kinds[name].pair else text
        for name, text in values.items()
    }
