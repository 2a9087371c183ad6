"""What requests and options ask the text to match, and which of it is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from gguf_serve.engine.grammar.constraint import Constraint, Trigger
from gguf_serve.server.configure import SettingsError, request_defaults
from gguf_serve.server.options.request_defaults import Defaults
from gguf_serve.server.options.settings import Settings

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}
GRAMMAR = 'root ::= "yes" | "no"'
DEFAULT = Constraint("regex", "[0-9]+")


@pytest.fixture
def asked(serve: Any, fakes: Any) -> Callable[..., Constraint | None]:
    """The constraint of the engine's request for a body; it has been compiled before."""
    engine = fakes.engine()
    url = serve(engine, defaults=Defaults(constraint=DEFAULT))

    def ask(path: str = "/v1/completions", **body: Any) -> Constraint | None:
        response = httpx.post(url + path, json={"prompt": "x"} | body)
        assert response.status_code == 200, response.text
        constraint: Constraint | None = engine.requests[-1].constraint
        assert constraint is None or engine.compiled[-1] == constraint
        return constraint

    return ask


def chat(**body: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}]} | body


@pytest.mark.parametrize(
    ("body", "schema"),
    [
        ({"response_format": {"type": "json_object"}}, {"type": "object"}),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, SCHEMA),
        ({"response_format": {"type": "json_object", "schema": {}}}, {"type": "object"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            SCHEMA,
        ),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, SCHEMA),
        ({"json_schema": SCHEMA}, SCHEMA),
        ({"json_schema": {}}, {}),
    ],
)
def test_schemas(
    asked: Callable[..., Constraint | None], body: dict[str, Any], schema: Any
) -> None:
    for constraint in (asked(**body), asked("/v1/chat/completions", **chat(**body))):
        assert constraint is not None
        assert constraint.kind == "json_schema"
        assert json.dumps(json.loads(constraint.text)) == json.dumps(schema)  # in their order


def test_grammars(asked: Callable[..., Constraint | None]) -> None:
    assert asked(grammar=GRAMMAR) == Constraint("gbnf", GRAMMAR)
    assert asked(guided_regex="a+") == asked(regex="a+") == Constraint("regex", "a+")
    lazy = asked(
        grammar=GRAMMAR,
        grammar_lazy=True,
        grammar_triggers=[{"type": 1, "value": "<call>"}, {"type": 0, "value": "", "token": 65}],
        preserved_tokens=["<call>"],
    )
    triggers = (Trigger("<call>"), Trigger("A"))
    assert lazy == Constraint("gbnf", GRAMMAR, triggers, preserved=("<call>",))


@pytest.mark.parametrize("wrap", [lambda d: {f"guided_{k}": v for k, v in d.items()},
                                  lambda d: {"structured_outputs": d}])  # fmt: skip
@pytest.mark.parametrize(
    ("given", "kind", "text"),
    [
        ({"json": SCHEMA}, "json_schema", json.dumps(SCHEMA)),
        ({"json": json.dumps(SCHEMA)}, "json_schema", json.dumps(SCHEMA)),
        ({"regex": "a+"}, "regex", "a+"),
        ({"choice": ["a b", 'say "x"']}, "lark", r'start: "a b" | "say \"x\""'),
        ({"grammar": GRAMMAR}, "gbnf", GRAMMAR),
        ({"grammar": 'start: "a"'}, "lark", 'start: "a"'),
    ],
)
def test_vllms_fields(
    asked: Callable[..., Constraint | None],
    wrap: Callable[[Any], Any],
    given: Any,
    kind: str,
    text: str,
) -> None:
    for found in (asked(**wrap(given)), asked("/v1/chat/completions", **chat(**wrap(given)))):
        assert found is not None
        same = json.dumps(json.loads(found.text)) if kind == "json_schema" else found.text
        assert (found.kind, same) == (kind, text)


def test_other_spellings(asked: Callable[..., Constraint | None]) -> None:
    assert asked(ebnf=GRAMMAR) == Constraint("gbnf", GRAMMAR)
    any_object = Constraint("json_schema", '{"type":"object"}')
    assert asked(structured_outputs={"json_object": True}) == any_object


def test_the_default_holds_unless_the_request_says_otherwise(
    asked: Callable[..., Constraint | None],
) -> None:
    assert asked() == asked(grammar="") == DEFAULT
    assert asked(response_format={"type": "text"}) is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"response_format": {"type": "xml"}}, "'response_format'.*xml"),
        ({"response_format": {"type": "json_schema"}}, "has no 'schema'"),
        ({"response_format": {"type": "json_schema", "schema": 3}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"grammar": GRAMMAR, "json_schema": {}}, "'grammar' and 'json_schema': only one"),
        ({"grammar": "("}, "invalid grammar"),
        ({"guided_json": "{"}, "'guided_json': expected a JSON schema, or its text"),
        ({"guided_json": "3"}, "'guided_json': expected a JSON schema, got 3"),
        ({"guided_choice": []}, "'guided_choice': expected texts that are not empty"),
        ({"guided_choice": ["a"], "structured_outputs": {"regex": "a"}}, "only one of them"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag' is not supported"),
        ({"grammar_lazy": True}, "no 'grammar'"),
        ({"grammar": GRAMMAR, "grammar_lazy": True}, "needs one at least"),
        (
            {"grammar": "x", "grammar_lazy": True, "grammar_triggers": [{"type": 2, "value": "a"}]},
            "patterns are not supported",
        ),
        ({"grammar": "x", "grammar_lazy": True, "grammar_triggers": [{"type": 1}]}, "a word or a"),
        (
            chat(grammar=GRAMMAR, tools=[{"type": "function", "function": {"name": "f"}}]),
            "Cannot use custom grammar constraints with tools.",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refused_before_anything_is_generated(
    serve: Any, fakes: Any, body: dict[str, Any], reason: str, stream: bool
) -> None:
    engine = fakes.engine()
    url = serve(engine)
    response = httpx.post(f"{url}/v1/chat/completions", json=chat(stream=stream) | body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert re.search(reason, error["message"]), error["message"]
    assert not engine.requests


def test_pydantic_models_of_the_client(serve: Any, fakes: Any, client: Any) -> None:
    class City(BaseModel):
        name: str
        people: int

    engine = fakes.engine(fakes.say('{"name": "Bern", "people": 134000}'))
    api: openai.OpenAI = client(serve(engine))
    answer = api.chat.completions.parse(
        model="x", messages=[{"role": "user", "content": "A city?"}], response_format=City
    )
    assert answer.choices[0].message.parsed == City(name="Bern", people=134000)
    schema = json.loads(engine.requests[0].constraint.text)
    assert list(schema["properties"]) == ["name", "people"]
    assert schema["additionalProperties"] is False


class TestOptions:
    def test_grammars_and_schemas(self, tmp_path: Path) -> None:
        file = tmp_path / "grammar.gbnf"
        file.write_text(GRAMMAR)
        for settings, expected in (
            (Settings(grammar=GRAMMAR), Constraint("gbnf", GRAMMAR)),
            (Settings(grammar_file=str(file)), Constraint("gbnf", GRAMMAR)),
            (Settings(json_schema="{}"), Constraint("json_schema", "{}")),
            (Settings(), None),
        ):
            assert request_defaults(settings).constraint == expected

    def test_only_one(self) -> None:
        with pytest.raises(SettingsError, match="--grammar and --json-schema cannot both"):
            request_defaults(Settings(grammar=GRAMMAR, json_schema="{}"))

    def test_a_file_that_is_not_there(self) -> None:
        with pytest.raises(SettingsError, match="--json-schema-file: cannot read"):
            request_defaults(Settings(json_schema_file="/none.json"))


def test_triggers_are_bounded(serve: Any, fakes: Any) -> None:
    """All of them are looked for in all the text that is written before."""
    url = serve(fakes.engine())
    word = {"type": 1, "value": "x"}
    for triggers, message in (
        ([word] * 65, "'grammar_triggers': 65 of them, at most 64"),
        ([word | {"value": "x" * 1001}], "a word of 1001 characters, at most 1000"),
    ):
        body = {"grammar": GRAMMAR, "grammar_lazy": True, "grammar_triggers": triggers}
        answer = httpx.post(url + "/completion", json={"prompt": "x"} | body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
