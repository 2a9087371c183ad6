"""Calls whose arguments are not JSON: Python calls of LFM2 and Llama 4, Gemma 4's maps."""

from __future__ import annotations

from dataclasses import dataclass

from engine.chat.layout import Tools
from engine.chat.literals import GEMMA, PYTHON, bare_word, mapping
from engine.chat.scanner import Parse, Scanner, accept, enclosed, expect, marks, skip_space


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """``start [name(key=value, ...), ...] end``."""

    start: str
    end: str

    def starts(self, tools: Tools) -> tuple[str, ...]:
        return (self.start,)

    @property
    def dropped(self) -> tuple[str, ...]:
        return (self.end,)

    def read(self, scanner: Scanner, start: str, tools: Tools) -> Parse[None]:
        yield from skip_space(scanner)
        in_list = yield from accept(scanner, marks("["))
        while True:
            yield from skip_space(scanner)
            name = yield from bare_word(scanner)
            yield from expect(scanner, marks("("))
            scanner.begin_call(name)
            yield from mapping(scanner, scanner.arguments, PYTHON, marks("="), ")")
            yield from skip_space(scanner)
            if (yield from accept(scanner, marks(","))) is None:
                break
        if in_list:
            yield from accept(scanner, marks("]"))


@dataclass(frozen=True, slots=True)
class GemmaCalls:
    """``<|tool_call>call:name{key:<|"|>text<|"|>, ...}<tool_call|>``."""

    start: str
    end: str

    def starts(self, tools: Tools) -> tuple[str, ...]:
        return (self.start,)

    @property
    def dropped(self) -> tuple[str, ...]:
        return (self.end,)

    def read(self, scanner: Scanner, start: str, tools: Tools) -> Parse[None]:
        yield from skip_space(scanner)
        yield from expect(scanner, marks("call:"))
        name = yield from enclosed(scanner, marks("{"))
        scanner.begin_call(name.strip())
        yield from mapping(scanner, scanner.arguments, GEMMA, marks(":"), "}")
