"""From the prompt of a request, in any of its shapes, to token ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from server.errors import invalid
from server.fields import Defaults, TemplateFields
from server.interface import ChatTemplate, Tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: tuple[int, ...]
    text: str | None = None  # as it was given, None if it was given as tokens


def completion_prompts(value: Any, tokenizer: Tokenizer) -> list[Prompt]:
    """A string, tokens, strings mixed with tokens, or a list of these."""
    if isinstance(value, list) and is_list_of_prompts(value):
        prompts = [one_prompt(item, tokenizer) for item in value]
    else:
        prompts = [one_prompt(value, tokenizer)]
    if not prompts:
        raise invalid("Field 'prompt': the list of prompts is empty")
    return prompts


def is_list_of_prompts(value: list[Any]) -> bool:
    return all(isinstance(item, str) for item in value) or any(
        isinstance(item, list) for item in value
    )


def one_prompt(value: Any, tokenizer: Tokenizer) -> Prompt:
    ids = tuple(encode_mixed("prompt", value, tokenizer, add_special=True))
    if not ids:
        raise invalid("Field 'prompt': the prompt has no tokens")
    return Prompt(ids, value if isinstance(value, str) else None)


def encode_mixed(
    field: str, value: Any, tokenizer: Tokenizer, add_special: bool, parse_special: bool = True
) -> list[int]:
    """Tokens of a string or of a list of strings and tokens; only a leading string gets BOS."""
    if isinstance(value, str):
        return tokenizer.encode(value, add_special=add_special, parse_special=parse_special)
    if not isinstance(value, list):
        raise invalid(f"Field '{field}': expected a string or an array, got {value!r:.80}")
    ids: list[int] = []
    for place, part in enumerate(value):
        if isinstance(part, str):
            with_special = add_special and place == 0
            ids += tokenizer.encode(part, add_special=with_special, parse_special=parse_special)
        else:
            ids.append(checked_token(field, part, tokenizer))
    return ids


def checked_token(field: str, value: Any, tokenizer: Tokenizer) -> int:
    if type(value) is not int:
        raise invalid(f"Field '{field}': expected a string or a token id, got {value!r:.80}")
    if not 0 <= value < tokenizer.n_vocab:
        last = tokenizer.n_vocab - 1
        raise invalid(f"Field '{field}': token {value} is outside the vocabulary (0 to {last})")
    return value


def chat_prompt(
    fields: TemplateFields, template: ChatTemplate, tokenizer: Tokenizer, defaults: Defaults
) -> Prompt:
    text = chat_text(fields, template, defaults)
    ids = tokenizer.encode(text, add_special=True, parse_special=True)
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_id:
        del ids[0]  # the template has written one too
    return Prompt(tuple(ids), text)


def chat_text(fields: TemplateFields, template: ChatTemplate, defaults: Defaults) -> str:
    check_messages(fields.messages)
    continues = continues_final_message(fields, defaults.prefill_assistant)
    extra: dict[str, Any] = dict(defaults.template_kwargs)
    if fields.reasoning_effort is not None:
        extra["reasoning_effort"] = fields.reasoning_effort
    if fields.parallel_tool_calls is not None:
        extra["parallel_tool_calls"] = fields.parallel_tool_calls
    extra |= fields.chat_template_kwargs or {}
    return template.render(
        fields.messages,
        tools=fields.tools if fields.tools and fields.tool_choice != "none" else None,
        add_generation_prompt=fields.add_generation_prompt is not False and not continues,
        continue_final_message=continues,
        extra=extra,
    )


def continues_final_message(fields: TemplateFields, prefill: bool) -> bool:
    """An assistant message at the end is the beginning of the answer."""
    roles = [message["role"] for message in fields.messages]
    continues = fields.continue_final_message
    if continues and roles[-1] != "assistant":
        raise invalid("Field 'continue_final_message': the last message is not the assistant's")
    if continues and fields.add_generation_prompt:
        raise invalid("Field 'continue_final_message': cannot go with 'add_generation_prompt'")
    if continues is None:
        continues = prefill and roles[-1] == "assistant"
    if continues and roles[-2:] == ["assistant", "assistant"]:
        raise invalid("Cannot have 2 or more assistant messages at the end of the list.")
    return continues


def check_messages(messages: list[dict[str, Any]]) -> None:
    if not messages:
        raise invalid("Field 'messages': the list is empty")
    for place, message in enumerate(messages):
        name = f"messages[{place}]"
        if not isinstance(message.get("role"), str):
            raise invalid(f"Field '{name}.role': expected a string, got {message.get('role')!r}")
        content = message.get("content")
        if isinstance(content, list):
            for number, part in enumerate(content):
                check_part(f"{name}.content[{number}]", part)
        elif content is not None and not isinstance(content, str):
            raise invalid(f"Field '{name}.content': expected a string, an array or null")
        elif content is None and message["role"] != "assistant":
            raise invalid(f"Field '{name}.content' is required")


def check_part(name: str, part: Any) -> None:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise invalid(f"Field '{name}': expected an object with a type, got {part!r:.80}")
    if part["type"] != "text":
        kind = part["type"]
        raise invalid(f"Field '{name}': input of type '{kind}' is not supported by this server")
    if not isinstance(part.get("text"), str):
        raise invalid(f"Field '{name}.text': expected a string")
