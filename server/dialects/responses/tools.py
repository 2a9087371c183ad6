"""The tools of a response: functions, also those in namespaces, as a chat completion's tools.

A custom tool takes a text of any form instead of arguments: here a function of one text. What the
text must look like the model is told; a regular expression is enforced, where it can be.

Templates and models know no namespaces, so that the name of one goes in front of its functions'
names, and in the answer both are apart again. Codex sends its MCP servers' tools so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from gguf_serve.server.dialects.responses.searching import is_search
from gguf_serve.server.errors import invalid, shown
from gguf_serve.server.tools.search import FUNCTION, NAME


class Function(NamedTuple):
    """A function tool, where it is in the request, and the namespace it is in, if any."""

    field: str
    namespace: str | None
    tool: Mapping[str, Any]

    @property
    def chat_name(self) -> Any:
        """What the model calls it. Any: what is no string is refused where tools are checked."""
        return chat_name(self.namespace, self.tool.get("name"))


def chat_name(namespace: Any, name: Any) -> Any:
    if not (isinstance(namespace, str) and isinstance(name, str)):
        return name
    return namespace + name if namespace.endswith("__") else f"{namespace}__{name}"


INPUT = "input"  # the one argument of a custom tool


def functions(data: Mapping[str, Any]) -> list[Function]:
    """Function and custom tools; other kinds are OpenAI's own services and are left out."""
    found = list(_functions("tools", data.get("tools", [])))
    given = data["input"]
    for place, item in enumerate(given if isinstance(given, list) else []):
        if item.get("type") == "additional_tools":
            found += _functions(f"input[{place}].tools", item.get("tools") or [])
    first: dict[str, Function] = {}
    for function in found:
        other = first.setdefault(str(function.chat_name), function)
        if other.namespace != function.namespace:
            names = f"{shown(function.chat_name)} as is that of {other.field}"
            raise invalid(f"Field '{function.field}': its name is {names}")
    return found


def _functions(field: str, tools: Any, namespace: str | None = None) -> Iterator[Function]:
    if not isinstance(tools, list):
        raise invalid(f"Field '{field}': expected an array, got {shown(tools)}")
    for place, tool in enumerate(tools):
        name = f"{field}[{place}]"
        if is_function(tool):
            yield Function(name, namespace, tool)
        elif isinstance(tool, dict) and tool.get("type") == "namespace" and namespace is None:
            if not isinstance(tool.get("name"), str):
                raise invalid(f"Field '{name}.name': expected a string")
            yield from _functions(f"{name}.tools", tool.get("tools") or [], tool["name"])


def is_function(tool: Any) -> bool:
    return isinstance(tool, dict) and tool.get("type") in ("function", "custom")


def is_custom(tool: Mapping[str, Any]) -> bool:
    return tool.get("type") == "custom"


def tool_fields(data: Mapping[str, Any], searches: bool = False) -> dict[str, Any]:
    """The fields of a chat completion that are about tools."""
    tools = [chat_tool(function) for function in functions(data)]
    searches = searches and any(map(is_search, data.get("tools") or ()))
    if searches:
        tools.append({"type": "function", "function": FUNCTION})
    if not tools:
        return {}
    body: dict[str, Any] = {"tools": tools}
    choice = data.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("tools")
        listed = allowed if isinstance(allowed, list) else []
        names = [chosen(tool) for tool in listed if is_function(tool)]
        names += [{"type": "function", "name": NAME}] * (searches and any(map(is_search, listed)))
        body["tool_choice"] = choice | {"tools": names}
    elif isinstance(choice, str):
        body["tool_choice"] = choice
    elif is_function(choice):
        body["tool_choice"] = chosen(choice)
    elif searches and is_search(choice):
        body["tool_choice"] = {"type": "function", "name": NAME}
    return body


def chosen(choice: Any) -> dict[str, Any]:
    name = chat_name(choice.get("namespace"), choice.get("name"))
    return {**choice, "type": "function", "name": name}


def chat_tool(function: Function) -> dict[str, Any]:
    names = ("description", "parameters", "strict")
    tool = custom_function(function) if is_custom(function.tool) else function.tool
    described = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": {"name": function.chat_name, **described}}


def custom_function(function: Function) -> Mapping[str, Any]:
    """A custom tool as a function."""
    field, tool = function.field, function.tool
    form = tool.get("format") or {"type": "text"}
    kind = form.get("type") if isinstance(form, dict) else None
    schema = {"type": "string", "description": "the whole input, as it is"}
    told = [tool["description"]] if tool.get("description") else []
    if kind == "grammar":
        syntax, definition = form.get("syntax"), form.get("definition")
        if syntax not in ("lark", "regex") or not isinstance(definition, str):
            expected = "expected a definition, and as syntax lark or regex"
            raise invalid(f"Field '{field}.format': {expected}, got {shown(form)}")
        what = "this grammar (Lark)" if syntax == "lark" else "this regular expression"
        told.append(f"The input must match {what}:\n{definition}")
        if syntax == "regex":
            schema["pattern"] = f"^(?:{definition})$"
    elif kind != "text":
        raise invalid(f"Field '{field}.format': expected text or a grammar, got {shown(form)}")
    parameters = {
        "type": "object", "properties": {INPUT: schema}, "required": [INPUT],
        "additionalProperties": False,
    }  # fmt: skip
    return {"description": "\n\n".join(told), "parameters": parameters}


def custom_input(arguments: str) -> str:
    """The text that a custom tool is called with."""
    try:
        text = msgspec.json.decode(arguments)[INPUT]
    except (msgspec.DecodeError, KeyError, TypeError):
        return arguments  # cut off
    return text if isinstance(text, str) else arguments


def custom_arguments(text: str) -> str:
    return msgspec.json.encode({INPUT: text}).decode()


def custom_names(data: Mapping[str, Any]) -> frozenset[str]:
    """What the model calls the custom tools."""
    return frozenset(one.chat_name for one in functions(data) if is_custom(one.tool))


def namespaced(data: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The namespace and the name of each function that has one, by what the model calls it."""
    return {
        function.chat_name: {"name": function.tool["name"], "namespace": function.namespace}
        for function in functions(data)
        if function.namespace is not None
    }
