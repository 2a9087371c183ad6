"""What fuzzing calls: each target takes any bytes, and may raise nothing but what it promises.

scripts/fuzz.py drives them by coverage; test_fuzz.py replays their corpora. A target's corpus
(tests/fuzz_corpus) holds what has found a fault once; its seeds are made here.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from byte_vocabulary import EOS, N_VOCAB, ByteVocabulary
from gguf import GGUFWriter

from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.architecture.shapes import check_tensors
from gguf_serve.engine.architecture.table import find_architecture
from gguf_serve.engine.chat.format import ChatParser
from gguf_serve.engine.chat.formats.table import ROWS, layout_of
from gguf_serve.engine.chat.layout import Turn
from gguf_serve.engine.encoders.encoder import open_projector
from gguf_serve.engine.errors import EngineError, ModelError, RequestError, naming, refusing
from gguf_serve.engine.forward.slot_file import SlotContent, read_slot_file, write_slot_file
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.grammar.guide import Guide
from gguf_serve.engine.text.pretokenizers import PRETOKENIZERS
from gguf_serve.engine.text.tokenizer import load_tokenizer

CORPUS = next(p for p in Path(__file__).parents if p.name == "tests") / "fuzz_corpus"
MOST_TEXT = 2000  # characters that are encoded or parsed
STEPS = 20  # tokens of a grammar
LAYOUTS = [layout for _, layout in ROWS] + [layout_of("")]
MADE_WITH = {"model": "abc"}
PAGE_BYTES = 8


@dataclass(frozen=True)
class Target:
    """``run`` may raise ``allowed`` alone; ``words``: what a mutation may insert."""

    run: Callable[[bytes], object]
    allowed: type[Exception]
    seeds: Callable[[], Iterable[bytes]]
    words: tuple[bytes, ...] = ()

    def __call__(self, data: bytes) -> None:
        with suppress(self.allowed):
            self.run(data)


class Feed:
    """Values from bytes, in their order; zeros after their end."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def byte(self) -> int:
        return (self._data.read(1) or b"\0")[0]

    def choice(self, values: Sequence[Any]) -> Any:
        return values[self.byte() % len(values)]

    def text(self) -> str:
        return self._data.read(self.byte()).decode("utf-8", "replace")

    def rest(self) -> str:
        return self._data.read().decode("utf-8", "replace")[:MOST_TEXT]


def _in_file(data: bytes, use: Callable[[Path], object]) -> None:
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(data)
        file.flush()
        use(Path(file.name))


# Models and projectors


def _model(path: Path) -> None:
    """As engine/loading/loader.py reads one, up to the device."""
    with refusing(path), open_gguf(path) as gguf, naming(path):
        h = read_hyperparameters(gguf, find_architecture(gguf.architecture))
        tokenizer = load_tokenizer(gguf.metadata)
        check_tensors(gguf, h)
        tokenizer.encode("Hello, wörld 12")


def _projector(path: Path) -> None:
    with naming(path):
        open_projector(path)


def _written(arch: str, values: Mapping[str, Any], tensors: Mapping[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.gguf"
        writer = GGUFWriter(path, arch)
        add: dict[type, Callable[[str, Any], None]] = {
            str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32,
            float: writer.add_float32, list: writer.add_array,
        }  # fmt: skip
        for key, value in values.items():
            add[type(value)](key, value)
        for name, data in tensors.items():
            writer.add_tensor(name, data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _matrix(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def _models() -> Iterable[bytes]:
    sizes = {"block_count": 1, "embedding_length": 32, "context_length": 64,
             "feed_forward_length": 32, "attention.head_count": 2, "attention.head_count_kv": 1,
             "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e4}  # fmt: skip
    tokens = {f"tokenizer.ggml.{key}": value for key, value in TOKENIZERS[3].items()}
    n = len(TOKENIZERS[3]["tokens"])
    tensors = {"token_embd.weight": _matrix(n, 32), "output_norm.weight": _matrix(32)}
    layer = {"attn_norm": (32,), "ffn_norm": (32,), "attn_q": (32, 32), "attn_k": (16, 32),
             "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (32, 32),
             "ffn_up": (32, 32), "ffn_down": (32, 32)}  # fmt: skip
    tensors |= {f"blk.0.{name}.weight": _matrix(*shape) for name, shape in layer.items()}
    for arch in ("llama", "gemma", "granite"):
        named = {f"{arch}.{key}": value for key, value in sizes.items()}
        if arch == "granite":
            named["granite.logit_scale"] = 2.0
        yield _written(arch, named | tokens, tensors)


def _projectors() -> Iterable[bytes]:
    both = {"embedding_length": 32, "block_count": 1, "attention.head_count": 2,
            "attention.layer_norm_epsilon": 1e-5}  # fmt: skip
    vision = {"image_size": 56, "patch_size": 14, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for kind in ("gemma3", "qwen2.5vl_merger", "internvl", "pixtral"):
        values = {f"clip.vision.{key}": value for key, value in (both | vision).items()}
        values |= {"clip.projector_type": kind, "clip.has_vision_encoder": True}
        yield _written("clip", values, {"v.patch_embd.weight": _matrix(1, 3, 14, 14)})
    values = {f"clip.audio.{key}": value for key, value in (both | {"num_mel_bins": 80}).items()}
    values |= {"clip.projector_type": "ultravox", "clip.has_audio_encoder": True}
    yield _written("clip", values, {"a.conv1d.1.weight": _matrix(1, 80, 3)})


# Tokenizers

_BYTES = [f"<0x{i:02X}>" for i in range(256)]
_GPT2 = [chr(i if 33 <= i < 127 else 256 + i) for i in range(256)]
TOKENIZERS: list[dict[str, Any]] = [
    {"model": "llama", "tokens": ["<unk>", "<s>", "</s>", *_BYTES, "▁", "a", "b", "ab", "▁a"],
     "scores": [0.0] * 261 + [-1.0, -2.0, -3.0], "token_type": [2, 3, 3] + [6] * 256 + [1] * 5,
     "bos_token_id": 1},
    {"model": "gpt2", "pre": "llama-bpe", "tokens": [*_GPT2, "ab", "abc", "<|end|>"],
     "merges": ["a b", "ab c"], "token_type": [1] * 258 + [3], "eos_token_id": 258,
     "bos_token_id": 258},
    {"model": "bert", "tokens": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁a", "b", "▁ab", "1"],
     "token_type": [3] * 4 + [1] * 4, "bos_token_id": 2, "seperator_token_id": 3},
    {"model": "t5", "tokens": ["<pad>", "</s>", "<unk>", "▁", "a", "b", "▁ab"],
     "scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -1.5], "token_type": [3, 3, 2, 1, 1, 1, 1]},
]  # fmt: skip
FLAGS = ("add_space_prefix", "add_bos_token", "add_eos_token", "add_sep_token",
         "remove_extra_whitespaces", "escape_whitespaces")  # fmt: skip
IDS = ("bos", "eos", "unknown", "eot", "padding", "cls", "seperator", "mask", "fim_pre")


def _tokenizer(data: bytes) -> None:
    feed = Feed(data)
    values = {key: list(v) if isinstance(v, list) else v
              for key, v in feed.choice(TOKENIZERS).items()}  # fmt: skip
    if feed.byte() % 2:
        values["pre"] = feed.choice(sorted(PRETOKENIZERS))
    for _ in range(feed.byte() % 8):
        _change(feed, values)
    metadata: dict[str, Any] = {"general.architecture": feed.choice(("llama", "bert", "gemma"))}
    for key, value in values.items():
        is_numbers = key in ("scores", "token_type") and isinstance(value, list)
        metadata[f"tokenizer.ggml.{key}"] = np.array(value) if is_numbers else value
    with refusing(Path("fuzz")):
        tokenizer = load_tokenizer(metadata)
    text = feed.rest()
    ids = tokenizer.encode(text, add_special=True, parse_special=bool(feed.byte() % 2))
    assert all(0 <= i < tokenizer.n_vocab for i in ids)
    decoder = tokenizer.decoder(True)
    "".join([*(decoder.push(i) for i in ids), decoder.flush()]).encode()


def _change(feed: Feed, values: dict[str, Any]) -> None:
    """Another token, merge, number or flag."""
    kind = feed.byte() % 6
    if kind == 0:
        values["tokens"].append(feed.text())
        for key, value in (("scores", -1.0), ("token_type", feed.choice((1, 3, 4, 6)))):
            if key in values:
                values[key].append(value)
    elif kind == 1:
        values["tokens"][feed.byte() % len(values["tokens"])] = feed.text()
    elif kind == 2:
        values.setdefault("merges", []).append(feed.text())
    elif kind == 3:
        key = feed.choice(("scores", "token_type"))
        numbers = values.setdefault(key, [])
        numbers.append(feed.choice((0, 1, 2, 3, 4, 5, 6, -1, 1e38, float("nan"), 2**40)))
    elif kind == 4:
        values[feed.choice(FLAGS)] = feed.choice((True, False, 1, "x"))
    else:
        values[f"{feed.choice(IDS)}_token_id"] = feed.choice((0, 1, 2, 258, 300, -1, 2**32, "x"))


def _tokenizer_seeds() -> Iterable[bytes]:
    for i in range(len(TOKENIZERS)):
        yield bytes([i, 0, 0, 0]) + "Hello, wörld  12\n\nabc ab<s></s> 日本語 🙂".encode()
        yield bytes([i, 1, 7, 2, 0, 3, 120, 121, 122, 0, 4, 0, 0]) + b"xyz 123 it's\t\r\n"


# Chat answers, grammars, slots


def _chat(data: bytes) -> None:
    """Any answer in any syntax, in pieces of any lengths."""
    feed = Feed(data)
    layout, reasoning = feed.choice(LAYOUTS), feed.choice(("auto", "none", "deepseek-legacy"))
    tools: Any = feed.choice(({}, {"f": {}}, {"f": {"type": "object", "properties": {
        "a": {"type": "string"}, "b": {"type": "integer"}}}}))  # fmt: skip
    parser = ChatParser(Turn(layout, tools, reasoning, bool(feed.byte() % 2)), feed.text())
    step, text = feed.byte() % 16 + 1, feed.rest()
    for at in range(0, len(text), step):
        parser.push(text[at : at + step])
    parser.finish()


def _chat_words() -> tuple[bytes, ...]:
    words = {word for texts, _ in ROWS for word in texts} | {"</think>", "<think>", '{"name": "f"'}
    return tuple(sorted({word.encode() for word in words}))


def _chat_seeds() -> Iterable[bytes]:
    for i, layout in enumerate(LAYOUTS):
        words = "".join(layout.tokens) + 'text {"name": "f", "arguments": {"a": "x", "b": 1}}'
        yield bytes([i, 0, 2, 0, 0, 3]) + words.encode()


_grammars = Grammars(ByteVocabulary(), N_VOCAB)


def _grammar(data: bytes) -> None:
    """A grammar of any kind, and the texts that it allows."""
    kind, text = (
        Feed(data).choice(("json_schema", "gbnf", "regex")),
        data[1:].decode("utf-8", "replace"),
    )
    guide = Guide(Constraint(kind, text), _grammars)
    words = np.zeros(-(-N_VOCAB // 32), np.int32)
    for step in range(STEPS):
        if not guide.constrains:
            break
        guide.fill(words)
        allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
        token = int(allowed[(7 * step + len(data)) % len(allowed)])
        guide.accept(token)
        if token == EOS:
            break


GRAMMARS = (
    '\0{"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-c]{2,4}$"}, '
    '"b": {"$ref": "#/$defs/n"}}, "required": ["a"], "$defs": {"n": {"type": "integer", '
    '"minimum": 3, "multipleOf": 2}}, "additionalProperties": false}',
    '\0{"anyOf": [{"enum": [1, null, "x"]}, {"type": "array", "items": {"const": true}, '
    '"minItems": 1, "maxItems": 3}], "format": "date-time"}',
    '\1root ::= ("a" | [^b-c\\n])* x{2,3} # c\nx ::= "\\x41" | root? .+\n',
    "\2(a|b)+[0-9]{1,3}\\p{L}?",
)


def _slot(data: bytes) -> None:
    """With a checksum that is right, if the first byte says so."""
    if data[:1] == b"\1":
        data += zlib.crc32(data[1:]).to_bytes(4, "little")

    def read(path: Path) -> None:
        content, _ = read_slot_file(path, MADE_WITH, PAGE_BYTES)
        assert len(content.tokens) <= len(data)

    _in_file(data[1:], read)


def _slot_seeds() -> Iterable[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slot"
        pages = [np.arange(PAGE_BYTES, dtype=np.uint8)] * 2
        write_slot_file(path, MADE_WITH, SlotContent([1, 2], pages, np.zeros(5, np.uint8)))
        whole = path.read_bytes()
        yield b"\1" + whole[:-4]
        yield b"\0" + whole


def _json_words(*words: str) -> tuple[bytes, ...]:
    return tuple(json.dumps(word).encode() for word in words)


TARGETS: dict[str, Target] = {
    "model": Target(lambda data: _in_file(data, _model), ModelError, _models),
    "projector": Target(lambda data: _in_file(data, _projector), ModelError, _projectors),
    "tokenizer": Target(_tokenizer, EngineError, _tokenizer_seeds),
    "chat": Target(_chat, RequestError, _chat_seeds, _chat_words()),
    "grammar": Target(
        _grammar, RequestError, lambda: [text.encode() for text in GRAMMARS],
        _json_words("type", "properties", "items", "$ref", "anyOf", "allOf", "oneOf", "not",
                    "pattern", "enum", "const", "minLength", "patternProperties", "prefixItems"),
    ),
    "slot": Target(
        _slot, RequestError, _slot_seeds, _json_words("version", "made_with", "n_pages")
    ),
}  # fmt: skip


def corpus(name: str) -> dict[str, bytes]:
    """What has found a fault of the target once, by file name."""
    folder = CORPUS / name
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {os.fspath(file.name): file.read_bytes() for file in files}
