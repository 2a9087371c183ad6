"""The templates of ``--chat-template NAME``: one row per format, made into Jinja.

The names and the formats are llama.cpp's (``llm_chat_template``). None of them writes the
BOS that a tokenizer adds; none takes tools.
"""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

DEFAULT = "chatml"  # for a model without a template


class Turns(Struct, frozen=True):
    """Texts of one format; ``{}`` stands for the content and ``{role}`` for the role's name.

    ``user`` is also used for roles without a text of their own. A system text of "" leaves
    the message out; ``system_in_user`` puts it, in this form, before the next user's content.
    """

    user: str
    assistant: str
    generation: str  # opens the assistant's turn
    system: str | None = None  # None: like user
    system_in_user: str | None = None
    first: str = ""  # before everything
    no_system: str = ""  # instead of a first system message
    strip: tuple[str, ...] = ()  # roles whose content is trimmed
    between: str = ""  # before every message but the first
    before_next_user: str = ""  # before a user's turn that follows an assistant's


_ALL = ("system", "user", "assistant")


def _same(text: str, generation: str, **options: Any) -> Turns:
    """A format that writes every role alike."""
    return Turns(text, text, generation, text, **options)


def _named(
    text: str, user: str, assistant: str, system: str, generation: str, **options: Any
) -> Turns:
    """A format alike for every role but for the role's name, which replaces ``@``."""
    texts = [text.replace("@", name) for name in (user, assistant, system)]
    return Turns(texts[0], texts[1], generation, texts[2], **options)


def _llama2(system: str, later: str = "", strip: tuple[str, ...] = ()) -> Turns:
    user = "[INST] {} [/INST]"
    return Turns(user, "{}</s>", "", system_in_user=system, strip=strip, before_next_user=later)


def _mistral(space: str, close: str, *, tekken: bool, strip: tuple[str, ...] = ()) -> Turns:
    lead = " " if close == " [/INST]" else ""
    answer = "{}</s>" if tekken else " {}</s>"
    return Turns(
        f"{lead}[INST]{space}{{}}{close}", answer, "", system_in_user="{}\n\n", strip=strip
    )


_SYS = "<<SYS>>\n{}\n<</SYS>>\n\n"
_GRANITE = "<|start_of_role|>{role}<|end_of_role|>{}<|end_of_text|>\n"
_HY = "<｜hy_place▁holder▁no▁{}｜>"

FORMATS: dict[str, Turns] = {
    "chatml": _same("<|im_start|>{role}\n{}<|im_end|>\n", "<|im_start|>assistant\n"),
    "llama2": _llama2("{}\n"),
    "llama2-sys": _llama2(_SYS),
    "llama2-sys-bos": _llama2(_SYS, later="<s>"),
    "llama2-sys-strip": _llama2(_SYS, strip=_ALL),
    "mistral-v1": _mistral(" ", " [/INST]", tekken=False),
    "mistral-v3": _mistral(" ", "[/INST]", tekken=False, strip=("assistant",)),
    "mistral-v3-tekken": _mistral("", "[/INST]", tekken=True),
    "mistral-v7": Turns("[INST] {}[/INST]", " {}</s>", "", "[SYSTEM_PROMPT] {}[/SYSTEM_PROMPT]"),
    "mistral-v7-tekken": Turns(
        "[INST]{}[/INST]", "{}</s>", "", "[SYSTEM_PROMPT]{}[/SYSTEM_PROMPT]"
    ),
    "phi3": _same("<|{role}|>\n{}<|end|>\n", "<|assistant|>\n"),
    "phi4": _same("<|im_start|>{role}<|im_sep|>{}<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
    "falcon3": _same("<|{role}|>\n{}\n", "<|assistant|>\n"),
    "zephyr": _same("<|{role}|>\n{}<|endoftext|>\n", "<|assistant|>\n"),
    "monarch": _same("{role}\n{}</s>\n", "<s>assistant\n", between="<s>"),
    "gemma": Turns(
        "<start_of_turn>user\n{}<end_of_turn>\n",
        "<start_of_turn>model\n{}<end_of_turn>\n",
        "<start_of_turn>model\n",
        system_in_user="{}\n\n",
        strip=_ALL,
    ),
    "orion": Turns("Human: {}\n\nAssistant: </s>", "{}</s>", "", system_in_user="{}\n\n"),
    "openchat": Turns(
        "GPT4 Correct User: {}<|end_of_turn|>",
        "GPT4 Correct Assistant: {}<|end_of_turn|>",
        "GPT4 Correct Assistant:",
        "{}<|end_of_turn|>",
    ),
    "vicuna": Turns("USER: {}\n", "ASSISTANT: {}</s>\n", "ASSISTANT:", "{}\n\n"),
    "vicuna-orca": Turns("USER: {}\n", "ASSISTANT: {}</s>\n", "ASSISTANT:", "SYSTEM: {}\n"),
    "deepseek": Turns(
        "### Instruction:\n{}\n", "### Response:\n{}\n<|EOT|>\n", "### Response:\n", "{}"
    ),
    "deepseek2": Turns(
        "User: {}\n\n", "Assistant: {}<｜end▁of▁sentence｜>", "Assistant:", "{}\n\n"
    ),
    "deepseek3": Turns(
        "<｜User｜>{}", "<｜Assistant｜>{}<｜end▁of▁sentence｜>", "<｜Assistant｜>", "{}\n\n"
    ),
    "deepseek-ocr": _same("{}", ""),
    "command-r": _named(
        "<|START_OF_TURN_TOKEN|><|@_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        "USER",
        "CHATBOT",
        "SYSTEM",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        strip=_ALL,
    ),
    "llama3": _same(
        "<|start_header_id|>{role}<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        strip=_ALL,
    ),
    "llama4": _same(
        "<|header_start|>{role}<|header_end|>\n\n{}<|eot|>",
        "<|header_start|>assistant<|header_end|>\n\n",
        strip=_ALL,
    ),
    "chatglm3": _same("<|{role}|>\n {}", "<|assistant|>", first="[gMASK]sop"),
    "chatglm4": _same("<|{role}|>\n{}", "<|assistant|>\n", first="[gMASK]<sop>"),
    "glmedge": _same("<|{role}|>\n{}", "<|assistant|>"),
    "minicpm": Turns("<用户>{}<AI>", "{}", "", "{}", strip=_ALL),
    "exaone3": Turns(
        "[|user|]{}\n",
        "[|assistant|]{}[|endofturn|]\n",
        "[|assistant|]",
        "[|system|]{}[|endofturn|]\n",
        strip=_ALL,
    ),
    "exaone4": Turns(
        "[|user|]{}\n",
        "[|assistant|]{}[|endofturn|]\n",
        "[|assistant|]",
        "[|system|]{}[|endofturn|]\n",
        strip=_ALL,
    ),
    "exaone-moe": _same("<|{role}|>\n{}<|endofturn|>\n", "<|assistant|>\n", strip=_ALL),
    "rwkv-world": Turns("User: {}\n\nAssistant:", " {}\n\n", "", "System: {}\n\n", strip=_ALL),
    "granite": _same(_GRANITE, "<|start_of_role|>assistant<|end_of_role|>"),
    "granite-4.0": _same(_GRANITE, "<|start_of_role|>assistant<|end_of_role|>"),
    "granite-4.1": _same(_GRANITE, "<|start_of_role|>assistant<|end_of_role|>"),
    "gigachat": Turns(
        "user<|role_sep|>{}<|message_sep|>available functions<|role_sep|>[]<|message_sep|>",
        "assistant<|role_sep|>{}<|message_sep|>",
        "assistant<|role_sep|>",
        "{}<|message_sep|>",
        first="<s>",
    ),
    "megrez": _same(
        "<|role_start|>{role}<|role_end|>{}<|turn_end|>", "<|role_start|>assistant<|role_end|>"
    ),
    "yandex": Turns(" Пользователь: {}\n\n", " Ассистент: {}\n\n", " Ассистент:[SEP]", system=""),
    "bailing": _named("<role>@</role>{}", "HUMAN", "ASSISTANT", "SYSTEM", "<role>ASSISTANT</role>"),
    "bailing-think": _named(
        "<role>@</role>{}", "HUMAN", "ASSISTANT", "SYSTEM", "<role>ASSISTANT</role><think>"
    ),
    "bailing2": _named(
        "<role>@</role>{}<|role_end|>",
        "HUMAN",
        "ASSISTANT",
        "SYSTEM",
        "<role>ASSISTANT</role>",
        no_system="<role>SYSTEM</role>detailed thinking off<|role_end|>",
    ),
    "smolvlm": Turns(
        "User: {}<end_of_utterance>\n",
        "Assistant: {}<end_of_utterance>\n",
        "Assistant:",
        "{}\n\n",
        first="<|im_start|>",
    ),
    "hunyuan-moe": Turns(
        "<|startoftext|>{}<|extra_0|>", "{}<|eos|>", "", "<|startoftext|>{}<|extra_4|>"
    ),
    "hunyuan-dense": Turns(
        "<｜hy_User｜>{}<｜hy_Assistant｜>",
        "<｜hy_Assistant｜>{}" + _HY.format(2),
        "",
        "{}" + _HY.format(3),
    ),
    "hunyuan-vl": Turns(
        "{}<｜hy_User｜>",
        "{}<｜hy_Assistant｜>",
        "",
        "{}" + _HY.format(3),
        first="<｜hy_begin▁of▁sentence｜>",
    ),
    "gpt-oss": Turns(
        "<|start|>{role}<|message|>{}<|end|>",
        "<|start|>{role}<|message|>{}<|return|>",
        "<|start|>assistant",
        "<|start|>{role}<|message|>{}<|end|>",
    ),
    "kimi-k2": Turns(
        "<|im_user|>{role}<|im_middle|>{}<|im_end|>",
        "<|im_assistant|>{role}<|im_middle|>{}<|im_end|>",
        "<|im_assistant|>assistant<|im_middle|>",
        "<|im_system|>{role}<|im_middle|>{}<|im_end|>",
    ),
    "seed_oss": _same(
        "<seed:bos>{role}\n{}<seed:eos>", "<seed:bos>assistant\n", strip=("assistant",)
    ),
    "grok-2": _named("@: {}<|separator|>\n\n", "Human", "Assistant", "System", "Assistant:"),
    "pangu-embedded": _named(
        "[unused9]@：{}[unused10]",
        "用户",
        "助手",
        "系统",
        "[unused9]助手：",
        no_system="[unused9]系统：[unused10]",
    ),
    "solar-open": _same("<|begin|>{role}<|content|>{}<|end|>", "<|begin|>assistant"),
}


def builtin_template(name: str) -> str | None:
    """The Jinja source of a built-in format, None if there is none of that name."""
    turns = FORMATS.get(name)
    return None if turns is None else _jinja(turns)


def builtin_names() -> list[str]:
    """What ``--chat-template`` accepts."""
    return sorted(FORMATS)


def _jinja(turns: Turns) -> str:
    """The format as a template; every line trims the white space around it."""
    lines = [
        '{%- set ns = namespace(system="", answered=false) -%}',
        _literal_output(turns.first),
        '{%- if messages[0].role != "system" -%}' + _literal_output(turns.no_system),
        "{%- endif -%}",
        "{%- for message in messages -%}",
        "{%- if not loop.first -%}" + _literal_output(turns.between) + "{%- endif -%}",
        '{%- if message.role == "system" -%}' + _system(turns),
        '{%- elif message.role == "assistant" -%}',
        _output(turns.assistant, "assistant" in turns.strip),
        "{%- set ns.answered = true -%}",
        "{%- else -%}",
        "{%- if ns.answered -%}" + _literal_output(turns.before_next_user) + "{%- endif -%}",
        _output(turns.user, "user" in turns.strip, "ns.system ~ "),
        '{%- set ns.system = "" -%}',
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}" + _literal_output(turns.generation) + "{%- endif -%}",
    ]
    return "\n".join(lines)


def _system(turns: Turns) -> str:
    strip = "system" in turns.strip
    if turns.system_in_user is not None:
        return (
            "{%- set ns.system = ns.system ~ " + _expression(turns.system_in_user, strip) + " -%}"
        )
    text = turns.user if turns.system is None else turns.system
    return _output(text, strip) if text else ""


def _output(text: str, strip: bool, before: str = "") -> str:
    return "{{- " + _expression(text, strip, before) + " -}}"


def _literal_output(text: str) -> str:
    return "{{- " + _literal(text) + " -}}"


def _expression(text: str, strip: bool, before: str = "") -> str:
    """The text as a Jinja expression: literals, the role, and the content in its place."""
    content = before + ("message.content | trim" if strip else "message.content")
    head, _, tail = text.partition("{}")
    return f"{_literal(head)} ~ {content} ~ {_literal(tail)}"


def _literal(text: str) -> str:
    before, role, after = text.partition("{role}")
    literal = json.dumps(before, ensure_ascii=False)
    return literal + (f" ~ message.role ~ {json.dumps(after, ensure_ascii=False)}" if role else "")
