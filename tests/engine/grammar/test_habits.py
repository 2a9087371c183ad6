"""What is expected where a grammar leaves little choice: what is forced, and what came last."""

from __future__ import annotations

import json

import numpy as np
import pytest
from byte_vocabulary import ByteVocabulary

from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.grammar.guide import Guide
from gguf_serve.engine.grammar.habits import Habits, kind_of

VOCABULARY = ByteVocabulary()
N_VOCAB = 512  # of logits
KEYS = ("alpha", "beta", "gamma", "delta")
SCHEMA = {
    "type": "object", "properties": {key: {"type": "string", "maxLength": 9} for key in KEYS},
    "required": KEYS, "additionalProperties": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(VOCABULARY, N_VOCAB)


def mask(*words: int, of: int = 16) -> np.ndarray:
    return np.array([*words, *[0] * (of - len(words))], np.uint32).view(np.int32)


def test_kinds_of_masks() -> None:
    assert kind_of(mask(1 << 31)) == "forced"
    assert kind_of(mask(3)) == kind_of(mask(1, 0, 1)) == kind_of(mask()) == "closed"
    assert kind_of(mask(*[1] * 5)) == "free"


def test_white_space_is_written_as_before(grammars: Grammars) -> None:
    guide = Guide(Constraint("json_schema", json.dumps(SCHEMA)), grammars)
    guide.foresees = True
    text, words = '{"alpha": "one", "beta": "two", "gamma": "six", "delta"', np.zeros(16, np.int32)
    found = []
    for token in VOCABULARY.spell(text):
        guide.fill(words)
        found.append(b"".join(map(VOCABULARY.piece, guide.foreseen)).decode())
        guide.accept(token)
    assert found[text.index("alpha")] == "alpha"
    for key in ("gamma", "delta"):
        assert found[text.index(f' "{key}"')] == f' "{key}": "'
    assert found[text.index("six")] == ""


def test_a_habit_that_was_broken_must_come_twice() -> None:
    habits = Habits()
    expected = []
    for token in (7, 7, 8, 8, 8):
        habits.note(5, "free")
        expected.append(habits.after_last)
        habits.note(token, "closed")
    assert expected == [None, 7, 7, None, 8]
