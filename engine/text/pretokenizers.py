"""How a text is cut into words before byte-level BPE: one row per ``tokenizer.ggml.pre``.

Each pattern cuts every chunk that the patterns before it left into its matches and what is
between them. The patterns are those of llama.cpp's ``llm_tokenizer_bpe``
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp), written for the
Oniguruma of the ``tokenizers`` library. Where llama.cpp's std::regex sees something else
than the pattern says, the pattern here says what it sees: it folds Lu, Ll, Lt, Lm and Lo into
L, and white space beyond ASCII never matches a literal range.
"""

from __future__ import annotations

import re

from msgspec import Struct

from gguf_serve.engine.text.windows import DEFAULT_RUNS

_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+|{_SYMBOLS}|\s+(?!\S)"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}[\r\n]*|{_SPACES}"


def _ranges(code_points: str) -> str:
    """The inside of a character class from hexadecimal ranges."""
    return re.sub("[0-9A-F]+", r"\\x{\g<0>}", code_points).replace(" ", "")


# Words that end where lower case is followed by upper case; ASCII case only.
_UPPER = r"[\p{L}&&[^a-z]]"
_LOWER = r"[\p{L}&&[^A-Z]]"
_UPPER_MARKED = r"[[\p{L}\p{M}]&&[^a-z]]"
_LOWER_MARKED = r"[[\p{L}\p{M}]&&[^A-Z]]"


def _cased(upper: str, lower: str, ending: str, digits: str) -> str:
    lead = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{lead}{upper}*{lower}+{ending}|{lead}{upper}+{lower}*{ending}"
        rf"|{digits}|{_SYMBOLS}[\r\n/]*|{_SPACES}"
    )


_ASCII_PUNCTUATED = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
_MARKED_WORD = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    rf"{_ASCII_PUNCTUATED}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)

# All letters with case, as DeepSeek's first pattern lists them.
_CASED_LETTERS = _ranges(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 "
    "388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD "
    "1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D "
    "1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 "
    "1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 "
    "212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE "
    "2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 "
    "FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 "
    "118A0-118DF 1E900-1E943"
)
_DEEPSEEK_CJK = r"[[一-龥ࠀ-一가-퟿]&&[^\s]]+"

_HAN = _ranges("3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2EBEF 2F800-2FA1F")
_KIMI = (
    rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}|{_SYMBOLS}[\r\n]*|{_SPACES}"
)
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_ASIAN = (
    "[["
    + _ranges(
        "4E00-9FFF 3400-4DBF 8C48-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF E40-E7F "
        "E80-EFF 1780-17FF 1000-109F AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF"
    )
    + r"]&&[^\s]]+"
)
# Numbers in groups of three from the right, found without looking ahead from every group;
# what precedes a number stays with its first group.
_GROUPED_NUMBERS = r"[^\p{N}]*(?:(?<!\p{N})\p{N}{1,2}(?=(?:\p{N}{3})*(?!\p{N}))|\p{N}{3})|[^\p{N}]+"
# Cuts before each group of three digits, counted from the right.
_LEADING_DIGITS = r"[0-9]{1,2}(?=(?:[0-9]{3})+(?![0-9]))"
_BEFORE_GROUPS = (
    rf"(?<![0-9]){_LEADING_DIGITS}|[0-9]{{3}}(?=[0-9])"
    rf"|[0-9]{{0,3}}(?:[^0-9]+(?:[0-9]{{1,2}}(?![0-9]))?)*(?:{_LEADING_DIGITS})?"
)


class Pretokenizer(Struct, frozen=True):
    """How to cut a text, and what else goes with the name of a pre-tokenizer."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is not merged anew
    add_bos: bool = False  # unless the file says otherwise
    add_separator: bool = False  # between two texts, unless the file says otherwise
    always_bos: bool = False  # converted files say no, and the models fail without it
    escape_spaces: bool = False  # SentencePiece's alphabet: ▁ for a space, <0xXX> for a byte
    newline_tokens: bool = False  # a run of newlines that is a token is not merged anew
    runs: tuple[str, ...] = DEFAULT_RUNS  # kinds of character (windows.py) cut by what follows


_RIGHT_TO_LEFT = (*DEFAULT_RUNS, "N")  # groups of digits are counted from the right

_DEFAULT = Pretokenizer(
    (
        r"[\p{P}\$\+<=>\^~\|]+",
        _GPT2,
        r"\p{N}+",
        r"[0-9][0-9][0-9]",
    )
)
_LLAMA3_ROW = Pretokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_GPT2_ROW = Pretokenizer((_GPT2,))
_STARCODER_ROW = Pretokenizer((r"\p{N}", _GPT2))
_QWEN2_ROW = Pretokenizer((_QWEN2,))
_DEEPSEEK3_ROW = Pretokenizer(_DEEPSEEK3)
_BLOOM_ROW = Pretokenizer((_BLOOM,))
_GPT4O_ROW = Pretokenizer((_cased(_UPPER, _LOWER, f"{_CONTRACTION}?", r"\p{N}{1,3}"),))
_GEMMA4_ROW = Pretokenizer(
    (r"\n+|[^\n]+",), always_bos=True, escape_spaces=True, newline_tokens=True
)
_BAILING_ROW = Pretokenizer(
    (rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_SYMBOLS}[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)
)
_TINY_AYA_ROW = Pretokenizer(
    (
        _GROUPED_NUMBERS,
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_CONTRACTION}?|\p{{N}}{{1,3}}"
        rf"|{_SYMBOLS}[\r\n/]*|{_SPACES}",
    ),
    runs=_RIGHT_TO_LEFT,
)

PRETOKENIZERS: dict[str, Pretokenizer] = {
    "": _DEFAULT,
    "default": _DEFAULT,
    **dict.fromkeys(
        (
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ),
        _LLAMA3_ROW,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), Pretokenizer((_LLAMA3,))),
    **dict.fromkeys(("glm4", "glm5"), Pretokenizer((_LLAMA3,), ignore_merges=True)),
    "whitespace": Pretokenizer((r"\S+",), escape_spaces=True),
    **dict.fromkeys(
        (
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ),
        _GPT2_ROW,
    ),
    **dict.fromkeys(
        ("jina-v1-en", "jina-v2-code", "roberta-bpe"), Pretokenizer((_GPT2,), add_separator=True)
    ),
    **dict.fromkeys(
        (
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ),
        _STARCODER_ROW,
    ),
    **dict.fromkeys(
        (
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ),
        _QWEN2_ROW,
    ),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK3_ROW),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), _BLOOM_ROW),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O_ROW),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING_ROW),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _TINY_AYA_ROW),
    **dict.fromkeys(("gemma4", "granite-embed-multi-311m"), _GEMMA4_ROW),
    "sarvam-moe": Pretokenizer((r"\n+|[^\n]+",), escape_spaces=True),
    "falcon": Pretokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "qwen35": Pretokenizer(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
        )
    ),
    "deepseek-llm": Pretokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            r"\s?[!-/:-~！-／：-～‘-‟、-。]+",
            r"\s+\z",
            _DEEPSEEK_CJK,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": Pretokenizer(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}")
    ),
    "jais-2": Pretokenizer(
        (
            rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_SYMBOLS}[\r\n]*|\s*[\r\n]+"
            + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s{1}",
        )
    ),
    "tekken": Pretokenizer(
        (_cased(_UPPER, _LOWER, "", r"\p{N}"),), ignore_merges=True, add_bos=True
    ),
    "granite-embed-multi-97m": Pretokenizer(
        (_cased(_UPPER_MARKED, _LOWER_MARKED, f"{_CONTRACTION}?", r"\p{N}{1,3}"),),
        ignore_merges=True,
    ),
    "chameleon": Pretokenizer(
        (
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
        runs=("LNO", "Z"),  # <sentinel:1> is seen at its end
    ),
    "viking": Pretokenizer((_BLOOM, r"\p{N}")),
    "superbpe": Pretokenizer((r"\p{N}+", _BEFORE_GROUPS), runs=_RIGHT_TO_LEFT),
    "seed-coder": Pretokenizer(
        (rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",)
    ),
    "ufakzeka": Pretokenizer((rf"{_WORD}|\p{{N}}|{_SYMBOLS}[\r\n]*|{_SPACES}",)),
    "exaone-moe": Pretokenizer(
        (
            rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+"
            rf"|\p{{N}}|{_SYMBOLS}[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "youtu": Pretokenizer(
        (
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_CONTRACTION}?"
            rf"|\p{{N}}|{_SYMBOLS}[\r\n/]*|{_SPACES}",
        ),
        ignore_merges=True,
    ),
    "spark2_5": Pretokenizer(
        (
            *_DEEPSEEK3[:2],
            rf"{_ASCII_PUNCTUATED}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+",
            r"\p{N}",
        )
    ),
    "kimi-k2": Pretokenizer((_KIMI,)),
    "afmoe": Pretokenizer(
        (
            _GROUPED_NUMBERS,
            _ASIAN,
            rf"{_ASCII_PUNCTUATED}|{_MARKED_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
        ),
        runs=_RIGHT_TO_LEFT,
    ),
    "laguna": Pretokenizer((r"[^\n]+|[\n]+", _QWEN2)),
    "minicpm5": Pretokenizer(
        (
            r"\p{N}{1,3}",
            rf"{_CONTRACTION}|{_WORD}|\p{{N}}+|{_SYMBOLS}[\r\n]*|{_SPACES}",
        ),
        ignore_merges=True,
    ),
}
