"""The layouts of models that tag each parameter, or write values in a notation of their own."""

from __future__ import annotations

from msgspec.structs import replace

from gguf_serve.engine.chat.formats.channels import MUSE as MUSE_CHANNELS
from gguf_serve.engine.chat.formats.channels import MuseCalls
from gguf_serve.engine.chat.formats.json_layouts import THINK
from gguf_serve.engine.chat.formats.literal_calls import LiteralCalls
from gguf_serve.engine.chat.formats.minimax_m3 import MinimaxM3Calls
from gguf_serve.engine.chat.formats.param_calls import ParamCalls
from gguf_serve.engine.chat.layout import Layout, Thinking
from gguf_serve.engine.chat.literals import GEMMA, PYTHON

_QWEN_PARAMS = ParamCalls(
    start="<function=",
    name_end=">",
    parameter="<parameter=",
    key_end=">",
    value_end="</parameter>",
    end="</function>",
    section=("<tool_call>", "</tool_call>"),
    in_lines=True,
)
_GLM_PARAMS = ParamCalls(
    start="<tool_call>",
    name_end="",
    parameter="<arg_key>",
    key_end="</arg_key>",
    value_start="<arg_value>",
    value_end="</arg_value>",
    end="</tool_call>",
)
_GLM_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
)
_DSML_PARAMS = ParamCalls(
    start='<｜DSML｜invoke name="',
    name_end='"',
    parameter='<｜DSML｜parameter name="',
    key_end='"',
    tag_end=">",
    value_end="</｜DSML｜parameter>",
    text_attributes=r'" string=\"true\""',
    json_attributes=r'" string=\"false\""',
    end="</｜DSML｜invoke>",
)
_LFM_CALLS = LiteralCalls(
    "<|tool_call_start|>", "<|tool_call_end|>", PYTHON, "(", "=", ")", in_list=True
)
_LFM_TOKENS = ("<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>")


def _dsml(section: str) -> Layout:
    marks = (f"<｜DSML｜{section}>", f"</｜DSML｜{section}>")
    return Layout(
        "deepseek-dsml",
        replace(_DSML_PARAMS, section=marks),
        Thinking("<think>", ("</think>", marks[0])),
        tokens=("｜DSML｜", "<think>", "</think>"),
    )


MUSE = Layout(
    "muse",
    read=MUSE_CHANNELS,
    calls=MuseCalls(),
    answer=('" to=user<|message|>"', ""),
    opening="<|start|>assistant",
    tokens=(
        *("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
        *("<atem:function_calls>", "</atem:function_calls>", "<atem:invoke"),
        *("</atem:invoke>", "<atem:parameter", "</atem:parameter>"),
    ),
)
KIMI_K3 = Layout(
    "kimi-k3",
    ParamCalls(
        start='<|open|>call tool="',
        name_end='"',
        parameter='<|open|>argument key="',
        key_end='"',
        tag_end="<|sep|>",
        value_end="<|close|>argument<|sep|>",
        end="<|close|>call<|sep|>",
        call_attributes='/ index="[0-9]+"/',
        text_attributes=r'" type=\"string\""',
        json_attributes='/ type="(number|integer|boolean|null|object|array)"/',
        section=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
    ),
    Thinking("<|open|>think<|sep|>", ("<|close|>think<|sep|>",)),
    dropped=(
        *("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
        *("<|close|>message<|sep|>", "<|end_of_msg|>"),
    ),
    answer=('"<|open|>response<|sep|>"', '"<|close|>response<|sep|>"'),
    before_calls='("<|open|>response<|sep|>" /[^<]*/ "<|close|>response<|sep|>")?',
    after_calls='"<|close|>message<|sep|>"?',
    ends_thinking=("<|open|>response<|sep|>", "<|open|>tools<|sep|>"),
    tokens=("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
)
MINIMAX_M3 = Layout(
    "minimax-m3",
    MinimaxM3Calls(),
    Thinking("<mm:think>", ("</mm:think>",)),
    tokens=("]<]minimax[>[", "<tool_call>", "</tool_call>", "<mm:think>", "</mm:think>"),
)
MINIMAX_M2 = Layout(
    "minimax-m2",
    ParamCalls(
        start='<invoke name="',
        name_end='"',
        parameter='<parameter name="',
        key_end='"',
        tag_end=">",
        value_end="</parameter>",
        end="</invoke>",
        section=("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    tokens=(
        *("<minimax:tool_call>", "</minimax:tool_call>", '<invoke name="', '">'),
        *("</invoke>", '<parameter name="', "</parameter>"),
    ),
)
GEMMA_4 = Layout(
    "gemma-4",
    LiteralCalls("<|tool_call>", "<tool_call|>", GEMMA, "{", ":", "}", prefix="call:"),
    Thinking("<|channel>thought", ("<channel|>",)),
    dropped=("<channel|>",),
    thinks_anywhere=True,
    tokens=("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|turn>"),
)
LFM_2_5 = Layout(
    "lfm-2.5",
    _LFM_CALLS,
    THINK,
    tokens=_LFM_TOKENS,
)
LFM_2 = Layout(
    "lfm-2",
    _LFM_CALLS,
    THINK,
    tokens=(*_LFM_TOKENS, "<|tool_list_start|>", "<|tool_list_end|>"),
)
SEED = Layout(
    "seed",
    replace(
        _QWEN_PARAMS,
        section=("<seed:tool_call>", "</seed:tool_call>"),
        in_lines=False,
    ),
    Thinking("<seed:think>", ("</seed:think>",)),
    tokens=(
        *("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
        *("<function=", ">", "</function>", "<parameter=", "</parameter>"),
    ),
)
HUNYUAN_3 = Layout(
    "hunyuan-3",
    ParamCalls(
        start="<tool_call:opensource>",
        name_end="<tool_sep:opensource>",
        parameter="<arg_key:opensource>",
        key_end="</arg_key:opensource>",
        value_start="<arg_value:opensource>",
        value_end="</arg_value:opensource>",
        end="</tool_call:opensource>",
        section=("<tool_calls:opensource>", "</tool_calls:opensource>"),
    ),
    Thinking("<think:opensource>", ("</think:opensource>",)),
    tokens=(
        *("<think:opensource>", "</think:opensource>", "<tool_calls:opensource>"),
        *("</tool_calls:opensource>", "<tool_call:opensource>", "<tool_sep:opensource>"),
        *("</tool_call:opensource>", "<arg_key:opensource>", "</arg_key:opensource>"),
        *("<arg_value:opensource>", "</arg_value:opensource>"),
    ),
)
LING_3 = Layout(
    "ling-3",
    _GLM_PARAMS,
    Thinking("<think>", ("</think>", "<tool_call>")),
    dropped=("<|role_end|>",),
    after_calls=r"/(.|\n)*/",
    stops=("<|role_end|>",),
    tokens=("<think>", "</think>", *_GLM_TOKENS, "<|role_end|>"),
)
LAGUNA = Layout("laguna", _GLM_PARAMS, stops=("</assistant>",), tokens=_GLM_TOKENS)
GLM_4_5 = Layout("glm-4.5", _GLM_PARAMS, tokens=_GLM_TOKENS)
DEEPSEEK_V3_2 = _dsml("function_calls")
DEEPSEEK_V4 = _dsml("tool_calls")
MINICPM = Layout(
    "minicpm",
    ParamCalls(
        start='<function name="',
        name_end='"',
        parameter='<param name="',
        key_end='"',
        tag_end=">",
        value_end="</param>",
        end="</function>",
        has_cdata=True,
    ),
    tokens=("<function", "<param", "</function>", "</param>"),
)
QWEN_3_5 = Layout(
    "qwen-3.5",
    _QWEN_PARAMS,
    Thinking("<think>", ("\n</think>", "</think>", "<tool_call>")),
    tokens=("<tool_call>", "</tool_call>", "<think>", "</think>"),
)
QWEN_3_CODER = Layout("qwen-3-coder", _QWEN_PARAMS, tokens=("<tool_call>", "</tool_call>"))
