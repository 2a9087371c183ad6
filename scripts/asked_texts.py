"""What people ask of a model, by kinds, each text once: for bench_speculation_cost.py."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

from bench_speculation import cases

from gguf_serve.engine.grammar.constraint import Constraint

DOCS = Path(__file__).resolve().parents[1] / "docs"
TOPICS = (
    "tides", "vaccines", "compound interest", "earthquakes", "the printing press", "black holes",
    "photosynthesis", "the Silk Road", "inflation", "chess", "volcanoes", "sleep", "bridges",
    "sourdough bread", "jet engines", "coral reefs",
)  # fmt: skip
QUESTIONS = (
    "Explain {} to a child.",
    "What do people often get wrong about {}?",
    "Tell me a short story in which {} play a part.",
    "How would you begin to learn about {}?",
)
PROGRAMS = (
    "sorts lines by their second word", "finds the shortest path in a grid with walls",
    "counts words in a file", "evaluates arithmetic expressions with brackets",
    "plays tic-tac-toe against itself", "converts Roman numerals to numbers and back",
    "solves Sudoku puzzles", "keeps the k most recently used entries of a cache",
    "checks whether brackets match", "computes the edit distance of two words",
    "simulates a bank with several accounts", "parses a CSV file with quotes",
)  # fmt: skip
LANGUAGES = ("Python", "C", "JavaScript")
WORK = (
    "baker", "surgeon", "pilot", "judge", "gardener", "violinist", "welder", "librarian",
    "fisher", "architect", "teacher", "detective", "miner", "translator", "tailor", "astronomer",
)  # fmt: skip
TOWNS = ("Lima", "Oslo", "Hanoi")
SECTION = range(700, 2200)  # characters of a text that is to be summarized
KEYS: dict[str, dict[str, Any]] = {
    "first_name": {"type": "string"}, "last_name": {"type": "string"},
    "year_of_birth": {"type": "integer"}, "occupation": {"type": "string"},
    "home_town": {"type": "string"}, "is_married": {"type": "boolean"},
    "number_of_children": {"type": "integer"}, "favourite_food": {"type": "string"},
    "favourite_book": {"type": "string"}, "remarks": {"type": "string"},
}  # fmt: skip
OBJECT = Constraint(
    "json_schema",
    json.dumps({"type": "object", "properties": KEYS, "required": list(KEYS),
                "additionalProperties": False}),
)  # fmt: skip


def chats() -> list[str]:
    return [question.format(topic) for question, topic in product(QUESTIONS, TOPICS)]


def summaries() -> list[str]:
    """Of sections of the documentation that are prose."""
    pages = [path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))]
    sections = [section for page in pages for section in re.split(r"^#+ ", page, flags=re.M)]
    prose = [each for each in sections if len(each) in SECTION and not re.search("```|^[|]", each)]
    return [f"Summarize this text in a few sentences:\n\n{section}" for section in prose]


def programs() -> list[str]:
    return [
        f"Write a program in {language} that {what}. Say nothing else."
        for what, language in product(PROGRAMS, LANGUAGES)
    ]


def people() -> list[str]:
    return [
        f"Invent a {work} who lives in {town}. Answer with a JSON object."
        for town, work in product(TOWNS, WORK)
    ]


TEXTS = {
    "chat": chats, "summary": summaries, "code": programs, "json": people, "edit": cases
}  # fmt: skip
CONSTRAINTS = {"json": OBJECT}  # by kind; the others have none
