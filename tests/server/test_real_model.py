"""Structured answers of a real model through OpenAI's client."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.options import EngineOptions

pytestmark = pytest.mark.slow
SENTENCE = "[A-Z][a-z]{2,9} is a [a-z]{3,12}"
FILE = "Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf"


class Person(BaseModel):
    """Bounded, so that a small model comes to an end."""

    name: str = Field(min_length=1, max_length=20)
    age: int = Field(ge=0, le=120)
    kind: Literal["student", "teacher"]
    hobbies: list[Literal["chess", "music", "running"]] = Field(max_length=3)
    friend: str | None = Field(max_length=20)


@pytest.fixture(scope="module")
def engine(shared: Path) -> Iterator[Engine]:
    path = shared / "models" / FILE
    if not path.is_file():
        pytest.skip(f"{FILE} is not there")
    engine = load_engine(path, EngineOptions(n_ctx=8192, n_parallel=4))
    yield engine
    assert engine.healthy
    engine.close()


class Kept:
    """The engine for a server that would close it: it is for several."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        pass


@pytest.fixture
def api(engine: Engine, serve: Any, client: Callable[[str], openai.OpenAI]) -> openai.OpenAI:
    return client(serve(Kept(engine))).with_options(timeout=120)


def say(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_a_pydantic_model(api: openai.OpenAI) -> None:
    for temperature in (0.0, 1.5):
        answer = api.chat.completions.parse(
            model="x", messages=say("Invent a person."), response_format=Person,
            temperature=temperature, max_tokens=200, seed=3,
        )  # fmt: skip
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(answer.choices[0].message.parsed, Person)


def test_streams_of_all_kinds_at_once(api: openai.OpenAI) -> None:
    asked: list[dict[str, Any]] = [
        {"response_format": {"type": "json_schema", "schema": Person.model_json_schema()}},
        {"extra_body": {"regex": SENTENCE}},
        {"extra_body": {"grammar": 'root ::= ("yes" | "no") "!"'}},
        {},
    ]

    def ask(fields: dict[str, Any]) -> str:
        stream = api.chat.completions.create(
            model="x", messages=say("Who is Cicero?"), stream=True,
            temperature=0, max_tokens=60, **fields,
        )  # fmt: skip
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    with ThreadPoolExecutor(len(asked)) as pool:
        described, sentence, answer, free = pool.map(ask, asked)
    assert Person.model_validate_json(described)
    assert re.fullmatch(SENTENCE, sentence)
    assert answer in ("yes!", "no!")
    assert free == ask({})


def test_refused_by_the_engine(api: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="cannot be enforced"):
        api.chat.completions.create(model="x", messages=say("Hi"), response_format=form)
