"""Byte-pair encoding by ranked merges, on the ``tokenizers`` library.

Two alphabets: GPT-2's, where each byte of a word is one printable character, and
SentencePiece's, where a space is ▁ and a character without a token is its bytes as <0xXX>.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.text.pretokenizers import Pretokenizer
from gguf_serve.engine.text.vocab import Vocab
from gguf_serve.engine.text.windows import pieces, windows
from gguf_serve.engine.text.words import attached, word_end, word_pattern

# Texts are encoded one at a time: threads of the library's own would serve nothing.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_LOST = "\0lost\0" * 4  # no text has this as one character
_SHORT = 2**12  # characters: a millisecond


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's character for each byte: itself if printable, else the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {byte: chr(byte) for byte in printable}
    return alphabet | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


_CHARACTER_OF_BYTE = _byte_alphabet()
_BYTE_OF_CHARACTER = {ord(character): byte for byte, character in _CHARACTER_OF_BYTE.items()}


def byte_level_piece(token: str) -> bytes:
    """The bytes of a token in GPT-2's alphabet; other text stands for itself."""
    try:
        return bytes([_BYTE_OF_CHARACTER[ord(character)] for character in token])
    except KeyError:
        return token.encode()


def word_splitter(pre: Pretokenizer) -> pre_tokenizers.PreTokenizer:
    """Cuts a text into the words within which merges happen."""
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    return pre_tokenizers.Sequence(splits)


def byte_level_encoder(
    vocab: Vocab, merges: Sequence[str], pre: Pretokenizer
) -> Callable[[str], Iterator[list[int]]]:
    """Encoding of plain text with GPT-2's alphabet; ModelError on a malformed merge."""
    pairs = _pairs(merges)
    stand_ins = _stand_ins(vocab, [])
    try:
        tokenizer = _tokenizer(vocab.ids | stand_ins, pairs, ignore_merges=pre.ignore_merges)
    except ModelError:  # as hardly ever: to look through all merges takes a third of the time
        stand_ins = _stand_ins(vocab, pairs)
        tokenizer = _tokenizer(vocab.ids | stand_ins, pairs, ignore_merges=pre.ignore_merges)
    to_alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([word_splitter(pre), to_alphabet])
    n_vocab = len(vocab.tokens)
    spelled = {i: _spelled(vocab, symbol) for symbol, i in stand_ins.items()}

    def real(ids: list[int]) -> list[int]:
        if spelled and max(ids, default=0) >= n_vocab:
            return [i for symbol in ids for i in spelled.get(symbol, (symbol,))]
        return ids

    def encode(text: str) -> list[int]:
        return real(_ids(tokenizer, text))

    def encode_until(text: str, place: int) -> tuple[list[int], int]:
        (encoding,) = tokenizer.encode_batch([text], add_special_tokens=False)
        words: Any = encoding.word_ids  # of each token

        def start(word: int) -> int:
            chars: Any = encoding.word_to_chars(word)
            return int(chars[0])

        # The last word that begins at the place or before it; what comes before that is whole.
        word = bisect_left(range(words[-1] + 1), place + 1, key=start) - 1
        return real(encoding.ids[: bisect_left(words, word)]), start(word)

    return lambda text: windows(text, encode_until, encode, pre.runs)


def escaped_encoder(
    vocab: Vocab, merges: Sequence[str], pre: Pretokenizer
) -> Callable[[str], Iterator[list[int]]]:
    """Encoding of plain text with SentencePiece's alphabet, line by line."""
    # A character with neither a token nor byte tokens keeps its neighbours apart, and is lost.
    lost = len(vocab.tokens)
    tokenizer = _tokenizer(vocab.ids | {_LOST: lost}, _pairs(merges), unknown=_LOST)
    before_spaces = attached(vocab.tokens)
    pattern = Regex(word_pattern(before_spaces))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    lines = re.compile("|".join(pre.patterns)).finditer
    boundary = word_end(before_spaces)

    def encode(text: str) -> Iterator[list[int]]:
        for match in lines(text):
            line = match[0]
            whole = pre.newline_tokens and line[0] == "\n"
            if whole and line in vocab.ids:
                yield [vocab.ids[line]]
                continue
            for piece in pieces(line, boundary):
                ids = _ids(tokenizer, piece.replace(" ", "▁"))
                yield [i for i in ids if i != lost] if lost in ids else ids

    return encode


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Without the interpreter's lock, unless taking it again would be longer than the work."""
    if len(text) <= _SHORT:
        encoding = tokenizer.encode(text, add_special_tokens=False)
    else:
        (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids


def _tokenizer(
    ids: dict[str, int],
    pairs: list[tuple[str, str]],
    ignore_merges: bool = False,
    unknown: str | None = None,
) -> Tokenizer:
    try:
        model = models.BPE(
            ids,
            pairs,
            unk_token=unknown,
            fuse_unk=False,
            byte_fallback=unknown is not None,
            ignore_merges=ignore_merges,
        )
    except Exception as error:  # the library raises no narrower type
        raise ModelError(f"tokenizer.ggml.merges: {error}") from error
    return Tokenizer(model)


def _pairs(merges: Sequence[str]) -> list[tuple[str, str]]:
    """Merges as pairs; the first of equal ones counts, as its rank is the better one."""
    cut = [tuple(merge.split(" ")) for merge in merges]  # hundreds of thousands: the short way
    if all(map(all, cut)) and {*map(len, cut)} <= {2} and len(set(merges)) == len(merges):
        return cast("list[tuple[str, str]]", cut)
    # A part may be a space itself, but is never empty.
    cuts = [merge.find(" ", 1) for merge in merges]
    if min(cuts, default=1) < 1:
        raise ModelError(f"tokenizer.ggml.merges: {merges[cuts.index(-1)]!r} is not a pair")
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge, cut in zip(merges, cuts, strict=True)]
    return list(dict.fromkeys(pairs))


def _stand_ins(vocab: Vocab, pairs: list[tuple[str, str]]) -> dict[str, int]:
    """Ids beyond the vocabulary for bytes, and symbols that take part in merging, without one."""
    symbols = dict.fromkeys(_CHARACTER_OF_BYTE.values())
    for left, right in pairs:
        symbols[left] = symbols[right] = symbols[left + right] = None
    absent = [symbol for symbol in symbols if symbol not in vocab.ids]
    return {symbol: len(vocab.tokens) + i for i, symbol in enumerate(absent)}


def _spelled(vocab: Vocab, symbol: str) -> list[int]:
    """What llama.cpp makes of a symbol without a token: its ASCII characters, the rest lost."""
    return [vocab.ids[c] for c in symbol if ord(c) < 128 and c in vocab.ids]
