"""Writes a model of random weights, for measuring where no model is at hand.

    python scripts/synthetic_model.py model.gguf                 (7 billion parameters, 4.1 GB)
    python scripts/synthetic_model.py model.gguf --shape qwen3moe-30b-a3b
    python scripts/synthetic_model.py model.gguf --layers 2 --embd 512 --heads 8 --kv-heads 2
        --ff 1024 --vocab 1000 --ctx 2048

model_shapes.py has the shapes; sizes of one's own are a Llama's. Activations stay finite, the
vocabulary is byte-level, and what it says is noise. Matrices are Q4_K, some Q6_K in shapes that
say so, or MXFP4 where their columns are no multiple of 256. The random blocks are drawn once per
number of columns and repeated, each tensor from another place on. Needs NumPy only.
"""

from __future__ import annotations

import argparse
import itertools
import math
import re
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from model_shapes import SHAPES, llama
from shape_parts import Number, Shape

ALIGNMENT = 32
# Types of values, as GGUF numbers them.
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
FILE_TYPE_Q4_K_S, FILE_TYPE_Q4_K_M = 14, 15
POOL_BLOCKS = 65537  # 9 MB of random blocks; a prime, so that matrices' rows all differ
END = "<|endoftext|>"


class Kind(NamedTuple):
    """A tensor type: its number, and the values and bytes of a block."""

    number: int
    values: int
    block: int


F32, Q4_K, Q6_K, MXFP4 = Kind(0, 1, 4), Kind(12, 256, 144), Kind(14, 256, 210), Kind(39, 32, 17)
# Matrices of RWKV-7 of few rows or columns, which llama-quantize keeps as they are.
NARROW = re.compile(r"time_mix_[wavg][12]\.")
FLOATS = ("norm", "conv", "ssm_a", "ssm_d", "gate_inp", "bias", "lerp")
WITH_MORE_BITS = re.compile(r"blk\.(\d+)\.(attn_v|ffn_down)\.")


def kind_of(shape: Shape, name: str, sizes: Sequence[int]) -> Kind:
    """Matrices are quantized, but for small ones that models keep as floats."""
    is_small = any(part in name for part in FLOATS) or NARROW.search(name)
    if len(sizes) == 1 or is_small or sizes[0] % MXFP4.values:
        return F32
    if sizes[0] % Q4_K.values:
        return MXFP4
    return Q6_K if shape.more_bits and _gets_more_bits(shape, name) else Q4_K


def _gets_more_bits(shape: Shape, name: str) -> bool:
    """In Q4_K_M files: the output, V and down in the first and last eighth of the layers, and in
    every third between them."""
    found = WITH_MORE_BITS.match(name)
    if found is None:
        return name == "output.weight"
    i, n = int(found[1]), shape.keys["block_count"]
    assert isinstance(n, int)
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def random_blocks(n_cols: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Q4_K blocks whose weights have mean 0 and variance 1 / n_cols, [POOL_BLOCKS, 144].

    Bytes of a block: half d, half dmin, 12 of scales and mins, 128 of codes. With the bits 4
    to 7 of the first eight of those 12 at 0, all scales and mins are from 0 to 15, as codes
    are: weight = d * scale * code - dmin * min.
    """
    blocks = rng.integers(0, 256, (POOL_BLOCKS, Q4_K.block), np.uint8)
    uniform = np.arange(16.0)
    square, mean = (uniform**2).mean(), uniform.mean()
    variance = square**2 - 2 * mean**4 + mean**2 * square  # of scale * code - mean * min
    d = (variance * n_cols) ** -0.5
    blocks[:, :4] = np.array([d, mean * d], np.float16).view(np.uint8)
    blocks[:, 4:12] &= 0x0F
    return blocks


def random_sixes(n_cols: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Q6_K blocks of that variance, [POOL_BLOCKS, 210]: 192 bytes of codes, 16 of scales, half d;
    weight = d * scale * (code - 32), scales from -16 to 15."""
    blocks = rng.integers(0, 256, (POOL_BLOCKS, Q6_K.block), np.uint8)
    scales = rng.integers(-16, 16, (POOL_BLOCKS, 16), np.int8)
    blocks[:, 192:208] = scales.view(np.uint8)
    variance = (np.arange(-32.0, 32.0) ** 2).mean() * (np.arange(-16.0, 16.0) ** 2).mean()
    blocks[:, 208:] = np.array([(variance * n_cols) ** -0.5], np.float16).view(np.uint8)
    return blocks


def random_fours(n_cols: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """MXFP4 blocks of about that variance, [POOL_BLOCKS, 17]: an exponent, then 32 codes of four
    bits, for 0, 0.5, 1, 1.5, 2, 3, 4 and 6 with either sign, whose mean square is 8.6."""
    blocks = rng.integers(0, 256, (POOL_BLOCKS, MXFP4.block), np.uint8)
    blocks[:, 0] = 127 - round(math.log2(8.6 * n_cols) / 2)
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


def _value(name: str, value: Number | Sequence[Number]) -> bytes:
    """A key with a number, or with one for each layer."""
    values = [value] if isinstance(value, bool | int | float) else list(value)
    first = values[0]
    kind, form = (
        (BOOL, "?") if isinstance(first, bool)
        else (UINT32, "I") if isinstance(first, int) else (FLOAT32, "f")
    )  # fmt: skip
    data = struct.pack(f"<{len(values)}{form}", *values)
    if isinstance(value, bool | int | float):
        return _string(name) + struct.pack("<I", kind) + data
    return _string(name) + struct.pack("<IIQ", ARRAY, kind, len(values)) + data


def _strings(name: str, texts: Sequence[str]) -> bytes:
    head = _string(name) + struct.pack("<IIQ", ARRAY, STRING, len(texts))
    return head + b"".join(map(_string, texts))


def metadata(shape: Shape) -> list[bytes]:
    """The file's keys with their values."""
    vocab = shape.keys["vocab_size"]
    assert isinstance(vocab, int)
    tokens, merges = byte_level_tokens(vocab)
    types = np.ones(vocab, "<i4")  # normal
    types[-1] = 3  # control
    text = {
        "general.architecture": shape.arch, "general.name": "synthetic",
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
    }  # fmt: skip
    numbers: dict[str, Number | Sequence[Number]] = {
        "general.file_type": FILE_TYPE_Q4_K_M if shape.more_bits else FILE_TYPE_Q4_K_S,
        "general.alignment": ALIGNMENT,
        **{f"{shape.arch}.{name}": value for name, value in shape.keys.items()},
        "tokenizer.ggml.bos_token_id": vocab - 1,
        "tokenizer.ggml.eos_token_id": vocab - 1,
        "tokenizer.ggml.add_bos_token": False,
    }
    return [
        *(_string(name) + struct.pack("<I", STRING) + _string(v) for name, v in text.items()),
        *(_value(name, value) for name, value in numbers.items()),
        _strings("tokenizer.ggml.tokens", tokens),
        _strings("tokenizer.ggml.merges", merges),
        _string("tokenizer.ggml.token_type")
        + struct.pack("<IIQ", ARRAY, INT32, vocab)
        + types.tobytes(),
    ]


def n_bytes(kind: Kind, sizes: Sequence[int]) -> int:
    return math.prod(sizes) // kind.values * kind.block


def header(shape: Shape) -> bytes:
    """Everything before the tensors' data, padding included."""
    keys, infos, offset = metadata(shape), [], 0
    for name, sizes in shape.tensors:
        kind = kind_of(shape, name, sizes)
        infos.append(
            _string(name)
            + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
            + struct.pack("<IQ", kind.number, offset)
        )
        offset += -(-n_bytes(kind, sizes) // ALIGNMENT) * ALIGNMENT
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys))
    data = head + b"".join(keys) + b"".join(infos)
    return data + bytes(-len(data) % ALIGNMENT)


def floats(name: str, sizes: Sequence[int], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """A tensor that is not quantized: norms are 1, biases 0, decays of states as models have."""
    n = math.prod(sizes)
    if name.endswith("ssm_a"):
        return -np.linspace(1, 16, n, dtype=np.float32)
    if name.endswith("ssm_dt.bias"):
        return np.log(np.expm1(np.geomspace(1e-3, 0.1, n))).astype(np.float32)  # softplus undone
    if "lerp" in name:
        return np.full(n, 0.5, np.float32)
    if name.endswith(("bias", "sinks.weight")):
        return np.zeros(n, np.float32)
    if len(sizes) == 1 or "norm" in name or name.endswith("ssm_d"):
        return np.ones(n, np.float32)
    return (rng.standard_normal(n) * math.pow(sizes[0], -0.5)).astype(np.float32)


def write_model(path: Path, shape: Shape, seed: int = 1) -> None:
    """Write the model."""
    rng = np.random.default_rng(seed)
    draw = {Q4_K: random_blocks, Q6_K: random_sixes, MXFP4: random_fours}
    kinds = {(kind_of(shape, name, sizes), sizes[0]) for name, sizes in shape.tensors}
    pools = {
        (kind, n_cols): draw[kind](n_cols, rng).reshape(-1)
        for kind, n_cols in sorted(kinds) if kind is not F32
    }  # fmt: skip
    with path.open("wb") as file:
        file.write(header(shape))
        for name, sizes in shape.tensors:
            kind = kind_of(shape, name, sizes)
            if kind is F32:
                file.write(floats(name, sizes, rng).astype("<f4").tobytes())
            else:
                start = int(rng.integers(POOL_BLOCKS)) * kind.block
                _write_cycle(file, pools[kind, sizes[0]], start, n_bytes(kind, sizes))
            file.write(bytes(-file.tell() % ALIGNMENT))


def _write_cycle(file: BinaryIO, pool: npt.NDArray[np.uint8], start: int, n_bytes: int) -> None:
    """Write ``n_bytes`` of ``pool``, from ``start`` on and round and round."""
    while n_bytes > 0:
        part = pool[start : start + n_bytes]
        file.write(part.data)
        n_bytes, start = n_bytes - part.size, 0


SIZES = {
    "layers": 32, "embd": 4096, "heads": 32, "kv_heads": 8, "ff": 14336, "vocab": 32000,
    "ctx": 32768,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a model of random weights.")
    parser.add_argument("path", type=Path, help="the GGUF file to write")
    parser.add_argument("--shape", choices=list(SHAPES), help="instead of sizes of one's own")
    for name, default in SIZES.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=default, help=f"default {default}")
    options = vars(parser.parse_args())
    path, name = options.pop("path"), options.pop("shape")
    try:
        write_model(path, SHAPES[name]() if name else llama(**options))
    except (ValueError, OSError) as error:
        print(f"synthetic_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
