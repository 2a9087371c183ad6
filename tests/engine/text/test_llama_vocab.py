"""Pre-tokenizers against those of llama.cpp itself.

Run in an environment that has llama-cpp-python, too; ``test_pretokenizers.py`` has recorded without
it what it knows.
"""

from __future__ import annotations

import ctypes
import random
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFWriter

from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.text.pretokenizers import PRETOKENIZERS
from gguf_serve.engine.text.tokenizer import load_tokenizer

NORMAL, CONTROL, BYTE = 1, 3, 6
pytestmark = pytest.mark.slow
# Letters of both cases and of other scripts, marks, digits, symbols, white space.
ALPHABET = " \n\r\taBsrc19.,'!_/$éÉ漢ひ²\u3000\u0301가नि٣…\u2019ẞ"
MIXTURES = [
    ALPHABET, " aB'sS1. ", " 1234567890ab,", "\n\r \ta.", "aBCdEfé' ", "漢字ひらがな a1.",
    " \u3000\xa0\u2003\u200ba1\n", "\u0391β\u0416жاب१२٣Ⅷ½\U0001f600 a",
]  # fmt: skip
SENTENCES = [
    "I'LL we'd DON'T can't 12345678 $1,234.56\n\n  foo\r\n",
    "def f(x):\n    return x+1  # c\n\t\ty",
    "Ⅷ½²³ 1²345 ١٢٣٤٥", "नमस्ते दुनिया १२३४", "a" * 300 + " " * 300 + "x",
    "<sentinel:12> IMGIMGABCZ <sentinel:1>",
]  # fmt: skip
# Each character is a token instead of each byte; Jina's has a kind of its own.
ESCAPED = {"gemma4": "gemma4", "whitespace": "whitespace"} | dict.fromkeys(
    ("granite-embed-multi-311m", "sarvam-moe"), "gpt2"
)
MARK = "?" * 30


@pytest.fixture(scope="module")
def llama() -> Any:
    """The library, whose log is in its ``log``, a list of texts."""
    library: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is what they are of")
    log: list[str] = []
    listener = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
        lambda level, text, data: log.append(text.decode(errors="replace"))
    )
    library.llama_log_set(listener, None)
    library.llama_backend_init()
    library.log, library.listener = log, listener
    return library


@pytest.fixture
def characters(byte_level: dict[str, Any]) -> list[str]:
    """What stands for each byte."""
    found: list[str] = byte_level["tokenizer.ggml.tokens"][:256]
    return found


def words_in(library: Any) -> list[str]:
    """All that may be a name among the strings of the library; a string may begin inside one."""
    (path,) = Path(library.__file__).parent.glob("lib/libllama.so")
    strings = re.findall(rb"[A-Za-z0-9._-]{2,26}(?=\0)", path.read_bytes())
    ends = {s[i:].decode() for s in strings if s[:2] != b"_Z" for i in range(len(s) - 1)}
    return sorted(word for word in ends if re.fullmatch(r"[a-z][a-z0-9._-]*", word))


def write(path: Path, characters: list[str], pre: str, model: str = "gpt2") -> None:
    """A vocabulary in which any two characters of the alphabet are merged, or any two bytes of it,
    for which ``characters`` stand."""
    if model == "gpt2" and pre not in ESCAPED:
        parts = sorted({characters[byte] for byte in ALPHABET.encode()})
        texts, types = characters, [NORMAL] * 256
    else:
        parts = [*dict.fromkeys(ALPHABET.replace(" ", "▁"))]
        texts = [f"<0x{byte:02X}>" for byte in range(256)] + parts
        types = [BYTE] * 256 + [NORMAL] * len(parts)
    pairs = [*product(parts, repeat=2)]
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*texts, *map("".join, pairs), "<end>"])
    writer.add_token_types([*types, *[NORMAL] * len(pairs), CONTROL])
    writer.add_token_merges([f"{a} {b}" for a, b in pairs])
    writer.add_bos_token_id(len(texts) + len(pairs))
    writer.add_eos_token_id(len(texts) + len(pairs))
    for add in (
        writer.add_context_length, writer.add_embedding_length, writer.add_block_count,
        writer.add_head_count, writer.add_feed_forward_length,
    ):  # fmt: skip
        add(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def known(library: Any, path: Path) -> set[str]:
    """Those words in the library that it takes as the name of a pre-tokenizer: with which for MARK
    in the file it loads it without a complaint of that."""
    before, after = path.read_bytes().split(MARK.encode())
    params = library.llama_model_default_params()
    params.vocab_only = True
    found = set()
    for word in words_in(library):
        data = before[:-8] + len(word).to_bytes(8, "little") + word.encode() + after
        path.write_bytes(data)
        library.log.clear()
        if model := library.llama_model_load_from_file(bytes(path), params):
            library.llama_model_free(model)
        if "unknown pre-tokenizer" not in "".join(library.log):
            found.add(word)
    return found


def test_all_pre_tokenizers_are_known(llama: Any, tmp_path: Path, characters: list[str]) -> None:
    write(tmp_path / "vocab.gguf", characters, MARK)
    assert known(llama, tmp_path / "vocab.gguf") == PRETOKENIZERS.keys() - {""}


@pytest.mark.parametrize("pre", sorted(PRETOKENIZERS.keys() - {""}))
def test_tokens(llama: Any, tmp_path: Path, characters: list[str], pre: str) -> None:
    path, rng = tmp_path / "vocab.gguf", random.Random(5)
    write(path, characters, pre, ESCAPED.get(pre, "gpt2"))
    texts = ["".join(rng.choices(m, k=rng.randint(1, 60))) for m in MIXTURES for _ in range(110)]
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(bytes(path), params)
    vocab, room = llama.llama_model_get_vocab(model), (llama.llama_token * 4096)()
    with open_gguf(path) as gguf:
        tokenizer = load_tokenizer(gguf.metadata)
    for text in [*texts, *SENTENCES]:
        raw = text.encode()
        n = llama.llama_tokenize(vocab, raw, len(raw), room, len(room), False, False)
        assert tokenizer.encode(text, add_special=False) == room[:n], text
    llama.llama_model_free(model)
