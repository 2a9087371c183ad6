"""Writes a model of random Q4_K weights, for measuring where no model is at hand.

    python scripts/synthetic_model.py model.gguf                 (7 billion parameters, 4.1 GB)
    python scripts/synthetic_model.py model.gguf --layers 2 --embd 512 --heads 8 --kv-heads 2
        --ff 1024 --vocab 1000 --ctx 2048

It is a Llama with finite activations and a byte-level vocabulary; what it says is noise.
The random blocks are drawn once per number of columns and repeated, each tensor from
another place on. Needs NumPy only.
"""

from __future__ import annotations

import argparse
import itertools
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

ALIGNMENT = 32
F32, Q4_K = 0, 12  # tensor types, and below types of values, as GGUF numbers them
UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5
FILE_TYPE_Q4_K_S = 14
SUPER, BLOCK_BYTES = 256, 144
POOL_BLOCKS = 65537  # 9 MB of random blocks; a prime, so that matrices' rows all differ
END = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama; the defaults are those of 7-billion-parameter models."""

    layers: int = 32
    embd: int = 4096
    heads: int = 32
    kv_heads: int = 8
    ff: int = 14336
    vocab: int = 32000
    ctx: int = 32768

    def check(self) -> None:
        """Raises ValueError for sizes that cannot be."""
        for name in ("embd", "ff"):
            if getattr(self, name) % SUPER or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not a multiple of {SUPER}")
        if min(self.layers, self.heads, self.kv_heads, self.ctx) < 1:
            raise ValueError(f"{self} has a size below 1")
        if self.embd % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"{self.embd} columns, {self.heads} heads and {self.kv_heads} KV heads do not fit"
            )
        if not 257 <= self.vocab <= 256 + 256 * 256:
            raise ValueError(f"vocab is {self.vocab}, not between 257 and 65792")

    def tensors(self) -> Iterator[tuple[str, int, int]]:
        """Names, columns and rows; no rows: a vector of float32."""
        kv = self.embd // self.heads * self.kv_heads
        yield "token_embd.weight", self.embd, self.vocab
        for i in range(self.layers):
            b = f"blk.{i}."
            yield f"{b}attn_norm.weight", self.embd, 0
            yield f"{b}attn_q.weight", self.embd, self.embd
            yield f"{b}attn_k.weight", self.embd, kv
            yield f"{b}attn_v.weight", self.embd, kv
            yield f"{b}attn_output.weight", self.embd, self.embd
            yield f"{b}ffn_norm.weight", self.embd, 0
            yield f"{b}ffn_gate.weight", self.embd, self.ff
            yield f"{b}ffn_up.weight", self.embd, self.ff
            yield f"{b}ffn_down.weight", self.ff, self.embd
        yield "output_norm.weight", self.embd, 0
        yield "output.weight", self.embd, self.vocab


def random_blocks(n_cols: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Q4_K blocks whose weights have mean 0 and variance 1 / n_cols, [POOL_BLOCKS, 144].

    Bytes of a block: half d, half dmin, 12 of scales and mins, 128 of codes. With the bits 4
    to 7 of the first eight of those 12 at 0, all scales and mins are from 0 to 15, as codes
    are: weight = d * scale * code - dmin * min.
    """
    blocks = rng.integers(0, 256, (POOL_BLOCKS, BLOCK_BYTES), np.uint8)
    uniform = np.arange(16.0)
    square, mean = (uniform**2).mean(), uniform.mean()
    variance = square**2 - 2 * mean**4 + mean**2 * square  # of scale * code - mean * min
    d = (variance * n_cols) ** -0.5
    blocks[:, :4] = np.array([d, mean * d], np.float16).view(np.uint8)
    blocks[:, 4:12] &= 0x0F
    return blocks


def byte_level_tokens(n_vocab: int) -> tuple[list[str], list[str]]:
    """Tokens and merges: GPT-2's 256 characters for bytes, pairs of them, and the end."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
    pairs = list(itertools.islice(itertools.product(characters, repeat=2), n_vocab - 257))
    return (
        [*characters, *(a + b for a, b in pairs), END],
        [f"{a} {b}" for a, b in pairs],
    )


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _uint32(name: str, value: int) -> bytes:
    return _string(name) + struct.pack("<II", UINT32, value)


def _strings(name: str, texts: Sequence[str]) -> bytes:
    head = _string(name) + struct.pack("<IIQ", ARRAY, STRING, len(texts))
    return head + b"".join(map(_string, texts))


def metadata(shape: Shape) -> list[bytes]:
    """The file's keys with their values."""
    tokens, merges = byte_level_tokens(shape.vocab)
    types = np.ones(shape.vocab, "<i4")  # normal
    types[-1] = 3  # control
    text = {
        "general.architecture": "llama", "general.name": "synthetic",
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
    }  # fmt: skip
    numbers = {
        "general.file_type": FILE_TYPE_Q4_K_S,
        "general.alignment": ALIGNMENT,
        "llama.block_count": shape.layers,
        "llama.context_length": shape.ctx,
        "llama.embedding_length": shape.embd,
        "llama.feed_forward_length": shape.ff,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.rope.dimension_count": shape.embd // shape.heads,
        "tokenizer.ggml.bos_token_id": shape.vocab - 1,
        "tokenizer.ggml.eos_token_id": shape.vocab - 1,
    }
    epsilon = "llama.attention.layer_norm_rms_epsilon"
    return [
        *(_string(name) + struct.pack("<I", STRING) + _string(v) for name, v in text.items()),
        *(_uint32(name, value) for name, value in numbers.items()),
        _string(epsilon) + struct.pack("<If", FLOAT32, 1e-5),
        _string("tokenizer.ggml.add_bos_token") + struct.pack("<I?", BOOL, False),
        _strings("tokenizer.ggml.tokens", tokens),
        _strings("tokenizer.ggml.merges", merges),
        _string("tokenizer.ggml.token_type")
        + struct.pack("<IIQ", ARRAY, INT32, shape.vocab)
        + types.tobytes(),
    ]


def tensor_bytes(n_cols: int, n_rows: int) -> int:
    return n_rows * n_cols // SUPER * BLOCK_BYTES if n_rows else 4 * n_cols


def header(shape: Shape) -> bytes:
    """Everything before the tensors' data, padding included."""
    keys, infos, offset = metadata(shape), [], 0
    for name, n_cols, n_rows in shape.tensors():
        sizes = (n_cols, n_rows) if n_rows else (n_cols,)
        infos.append(
            _string(name)
            + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
            + struct.pack("<IQ", Q4_K if n_rows else F32, offset)
        )
        offset += -(-tensor_bytes(n_cols, n_rows) // ALIGNMENT) * ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys))
    data = head + b"".join(keys) + b"".join(infos)
    return data + bytes(-len(data) % ALIGNMENT)


def write_model(path: Path, shape: Shape, seed: int = 1) -> None:
    """Write the model; ValueError for sizes that cannot be."""
    shape.check()
    rng = np.random.default_rng(seed)
    pools = {n: random_blocks(n, rng).reshape(-1) for n in sorted({shape.embd, shape.ff})}
    with path.open("wb") as file:
        file.write(header(shape))
        for _, n_cols, n_rows in shape.tensors():
            if n_rows:
                start = int(rng.integers(POOL_BLOCKS)) * BLOCK_BYTES
                _write_cycle(file, pools[n_cols], start, tensor_bytes(n_cols, n_rows))
            else:
                file.write(np.ones(n_cols, "<f4").tobytes())
            file.write(bytes(-file.tell() % ALIGNMENT))


def _write_cycle(file: BinaryIO, pool: npt.NDArray[np.uint8], start: int, n_bytes: int) -> None:
    """Write ``n_bytes`` of ``pool``, from ``start`` on and round and round."""
    while n_bytes > 0:
        part = pool[start : start + n_bytes]
        file.write(part.data)
        n_bytes, start = n_bytes - part.size, 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a model of random Q4_K weights.")
    parser.add_argument("path", type=Path, help="the GGUF file to write")
    for name, default in ((f, getattr(Shape(), f)) for f in Shape.__dataclass_fields__):
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=default, help=f"default {default}")
    options = vars(parser.parse_args())
    try:
        write_model(options.pop("path"), Shape(**options))
    except (ValueError, OSError) as error:
        print(f"synthetic_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
