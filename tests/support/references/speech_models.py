"""The specs of a small model that speaks, and of its projector, and both as files:

PYTHONPATH=tests python tests/support/references/speech_models.py model.gguf mmproj.gguf
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from conformance_data import Spec

SEED, WIDTH, CODES, BOOKS = 21, 64, 64, 15
NORMAL, CONTROL = 1, 3  # types of tokens
N_CODE_TOKENS = 3072  # llama.cpp has a number of its own for the rows of the output
WORD = "assistant"
TEXT_MARKS = ("<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>")
CODE_MARKS = {
    2148: "codec_pad", 2149: "codec_bos", 2150: "codec_eos_token", 2154: "codec_think",
    2155: "codec_nothink", 2156: "codec_think_bos", 2157: "codec_think_eos",
    2050: "codec_language_english", 2055: "codec_language_chinese",
}  # fmt: skip
# So that codes count beside text, and samples stay below 1.
VALUES = {
    "a.gen.code.embd.weight": ["normal", 0.0, 0.3],
    "a.gen.code.out_embd.weight": ["normal", 0.0, 1.0],
    "a.gen.wav.dac.post_conv.weight": ["normal", 0.0, 0.006],
    "a.gen.wav.dac.post_conv.bias": ["normal", 0.0, 0.01],
}
SNAKES = {"alpha": ["normal", 1.0, 0.1], "beta": ["normal", 0.3, 0.1]}
Shapes = Iterator[tuple[str, list[int], str]]  # of tensors, columns first, and their types


def byte_tokens() -> list[str]:
    """How GPT-2's vocabularies write the 256 bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    names = {byte: chr(byte) for byte in shown}
    names |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [names[byte] for byte in range(256)]


def talker() -> Spec:
    """A Qwen3-TTS of two layers whose vocabulary has the bytes, a word and the codes."""
    beginnings = [WORD[:i] for i in range(2, len(WORD) + 1)]
    codes = [f"<|{CODE_MARKS.get(i, f'codec_{i}')}|>" for i in range(N_CODE_TOKENS)]
    plain = [*byte_tokens(), *beginnings]
    tokens = [*plain, *TEXT_MARKS, *codes]
    n_marks, first = len(tokens) - len(plain), len(tokens) - N_CODE_TOKENS
    sizes = {
        "vocab_size": len(tokens), "context_length": 512, "embedding_length": WIDTH,
        "block_count": 2, "feed_forward_length": 96, "attention.head_count": 4,
        "attention.head_count_kv": 2, "attention.key_length": 32, "attention.value_length": 32,
        "rope.dimension_count": 32,
    }  # fmt: skip
    kv = {
        **{f"qwen3tts.{name}": ("UINT32", value) for name, value in sizes.items()},
        "qwen3tts.attention.layer_norm_rms_epsilon": ("FLOAT32", 1e-6),
        "qwen3tts.rope.freq_base": ("FLOAT32", 1e6),
        "qwen3tts.rope.dimension_sections": ("array:INT32", [6, 5, 5, 0]),
        "tokenizer.ggml.model": ("STRING", "gpt2"),
        "tokenizer.ggml.pre": ("STRING", "qwen2"),
        "tokenizer.ggml.tokens": ("array:STRING", tokens),
        "tokenizer.ggml.token_type": ("array:INT32", [NORMAL] * len(plain) + [CONTROL] * n_marks),
        "tokenizer.ggml.merges": (
            "array:STRING", [f"{WORD[: i - 1]} {WORD[i - 1]}" for i in range(2, len(WORD) + 1)],
        ),
        "tokenizer.ggml.eos_token_id": ("UINT32", tokens.index("<|codec_eos_token|>")),
        "tokenizer.ggml.add_bos_token": ("BOOL", False),
        "tokenizer.ggml.suppress_tokens": (
            "array:INT32", [first + i for i in range(CODES, N_CODE_TOKENS) if i != 2150],
        ),
    }  # fmt: skip
    return _spec("qwen3tts", kv, _talker(len(tokens)))


def _talker(n_vocab: int) -> Shapes:
    yield "token_embd.weight", [WIDTH, n_vocab], "F32"
    yield "output_norm.weight", [WIDTH], "F32"
    yield "output.weight", [WIDTH, N_CODE_TOKENS], "F32"
    for i in range(2):
        b = f"blk.{i}."
        for name, rows in (("q", 128), ("k", 64), ("v", 64)):
            yield f"{b}attn_{name}.weight", [WIDTH, rows], "F32"
        yield f"{b}attn_output.weight", [128, WIDTH], "F32"
        for name in ("attn_q_norm", "attn_k_norm"):
            yield f"{b}{name}.weight", [32], "F32"
        for name in ("attn_norm", "ffn_norm"):
            yield f"{b}{name}.weight", [WIDTH], "F32"
        for name in ("ffn_gate", "ffn_up"):
            yield f"{b}{name}.weight", [WIDTH, 96], "F32"
        yield f"{b}ffn_down.weight", [96, WIDTH], "F32"


def projector() -> Spec:
    """What encodes voices, and makes codes and sounds for that model."""
    voices = {
        "projection_dim": WIDTH, "embedding_length": 96, "block_count": 3,
        "feed_forward_length": 96, "num_mel_bins": 128, "attention.head_count": 1,
    }  # fmt: skip
    predictor = {
        "projection_dim": WIDTH, "embedding_length": 48, "block_count": 2,
        "feed_forward_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2,
    }  # fmt: skip
    kv = {
        "clip.has_audio_encoder": ("BOOL", True),
        "clip.audio.projector_type": ("STRING", "qwen3tts_spkenc"),
        **{f"clip.audio.{name}": ("UINT32", value) for name, value in voices.items()},
        "clip.audio.attention.layer_norm_epsilon": ("FLOAT32", 1e-5),
        "clip.has_gen_audio_encoder": ("BOOL", True),
        "clip.gen.audio.projector_type": ("STRING", "qwen3tts_gen"),
        **{f"clip.gen.audio.{name}": ("UINT32", value) for name, value in predictor.items()},
        "clip.gen.audio.attention.layer_norm_epsilon": ("FLOAT32", 1e-6),
    }
    tensors = chain(_voices(), _predictor(), _codes_to_rows(), _rows_to_samples())
    return _spec("clip", kv, tensors)


def _voices() -> Shapes:
    """ECAPA-TDNN."""

    def convolution(name: str, taps: int, n_in: int, n_out: int) -> Shapes:
        yield f"a.{name}.weight", [taps, n_in, n_out], "F32"
        yield f"a.{name}.bias", [n_out], "F32"

    yield from convolution("conv1d.0", 5, 128, 32)
    for i in range(1, 4):
        yield from convolution(f"blk.{i}.conv_pw1", 1, 32, 32)
        yield from convolution(f"blk.{i}.conv_pw2", 1, 32, 32)
        yield from convolution(f"blk.{i}.se_conv1", 1, 32, 12)
        yield from convolution(f"blk.{i}.se_conv2", 1, 12, 32)
        for j in range(7):
            yield from convolution(f"blk.{i}.res2.{j}", 3, 4, 4)
    yield from convolution("conv_out", 1, 96, 96)
    yield from convolution("asp_tdnn", 1, 288, 24)
    yield from convolution("asp_attn", 1, 24, 96)
    yield "mm.a.fc.weight", [1, 192, WIDTH], "F32"
    yield "mm.a.fc.bias", [WIDTH], "F32"


def _predictor() -> Shapes:
    p, width = "a.gen.code.", 48
    yield f"{p}proj_in.weight", [WIDTH, width], "F32"
    yield f"{p}proj_in.bias", [width], "F32"
    yield f"{p}embd.weight", [WIDTH, CODES, BOOKS], "F32"
    yield f"{p}head.weight", [width, CODES, BOOKS], "F32"
    yield f"{p}out_embd.weight", [WIDTH, N_CODE_TOKENS], "F32"
    yield f"{p}output_norm.weight", [width], "F32"
    for i in range(2):
        b = f"{p}blk.{i}."
        for name, rows in (("q", 64), ("k", 32), ("v", 32)):
            yield f"{b}attn_{name}.weight", [width, rows], "F32"
        yield f"{b}attn_out.weight", [64, width], "F32"
        for name in ("attn_q_norm", "attn_k_norm"):
            yield f"{b}{name}.weight", [16], "F32"
        for name in ("ln1", "ln2"):
            yield f"{b}{name}.weight", [width], "F32"
        for name in ("ffn_gate", "ffn_up"):
            yield f"{b}{name}.weight", [width, 64], "F32"
        yield f"{b}ffn_down.weight", [64, width], "F32"


def _codes_to_rows() -> Shapes:
    """The vocoder's embeddings and transformer."""
    p = "a.gen.wav."
    for which, books in (("first", [16, CODES]), ("rest", [16, CODES, BOOKS])):
        yield f"{p}quant.{which}.codebook.weight", books, "F32"
        yield f"{p}quant.{which}.in_proj.weight", [32, 16], "F32"
        yield f"{p}quant.{which}.out_proj.weight", [16, 32], "F32"
    yield f"{p}pre_conv.weight", [3, 32, 40], "F16"
    yield f"{p}pre_conv.bias", [40], "F32"
    for name, shape in (("in_proj", [40, 32]), ("out_proj", [32, 40])):
        yield f"{p}tfm.{name}.weight", shape, "F32"
        yield f"{p}tfm.{name}.bias", [shape[1]], "F32"
    yield f"{p}tfm.output_norm.weight", [32], "F32"
    for i in range(8):
        b = f"{p}tfm.blk.{i}."
        for name in "qkv":
            yield f"{b}attn_{name}.weight", [32, 64], "F32"
        yield f"{b}attn_out.weight", [64, 32], "F32"
        for name in ("ln1", "ln2", "ls1", "ls2"):
            yield f"{b}{name}.weight", [32], "F32"
        for name in ("ffn_gate", "ffn_up"):
            yield f"{b}{name}.weight", [32, 48], "F32"
        yield f"{b}ffn_down.weight", [48, 32], "F32"


def _rows_to_samples() -> Shapes:
    """The vocoder's convolutions."""
    p = "a.gen.wav."
    for i in range(2):
        b = f"{p}up.blk.{i}."
        yield f"{b}conv.weight", [2, 40, 40], "F32"
        yield f"{b}dwconv.weight", [7, 1, 40], "F16"
        yield f"{b}pw1.weight", [40, 80], "F32"
        yield f"{b}pw2.weight", [80, 40], "F32"
        for name, n in (("conv", 40), ("dwconv", 40), ("norm", 40), ("pw1", 80), ("pw2", 40)):
            yield f"{b}{name}.bias", [n], "F32"
        yield f"{b}norm.weight", [40], "F32"
        yield f"{b}gamma", [40], "F32"
    widths, strides = (32, 16, 8, 8, 4), (8, 5, 4, 3)
    for name, shape in (("entry", [7, 40, 32]), ("post_conv", [7, 4, 1])):
        yield f"{p}dac.{name}.weight", shape, "F16"
        yield f"{p}dac.{name}.bias", [shape[2]], "F32"
    snakes = [("post_snake", widths[-1])]
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        b = f"blk.{i}."
        yield f"{p}dac.{b}conv.weight", [2 * strides[i], n_out, n_in], "F32"
        yield f"{p}dac.{b}conv.bias", [n_out], "F32"
        snakes.append((f"{b}snake", n_in))
        for j in range(3):
            for conv, taps in (("conv1", 7), ("conv2", 1)):
                yield f"{p}dac.{b}res.{j}.{conv}.weight", [taps, n_out, n_out], "F16"
                yield f"{p}dac.{b}res.{j}.{conv}.bias", [n_out], "F32"
            snakes += [(f"{b}res.{j}.act1", n_out), (f"{b}res.{j}.act2", n_out)]
    for name, n in snakes:
        yield f"{p}dac.{name}.alpha", [n], "F32"
        yield f"{p}dac.{name}.beta", [n], "F32"


def _spec(arch: str, kv: dict[str, Any], tensors: Iterable[Any]) -> Spec:
    listed = list(tensors)
    values = {
        name: SNAKES[name.rpartition(".")[2]] for name, *_ in listed if name.endswith(tuple(SNAKES))
    }
    return {"arch": arch, "seed": SEED, "kv": kv, "tensors": listed, "values": VALUES | values}


if __name__ == "__main__":
    from random_model import build

    build(talker(), Path(sys.argv[1]))
    build(projector(), Path(sys.argv[2]))
