"""Byte-pair encoding by ranked merges, on the ``tokenizers`` library.

Two alphabets: GPT-2's, where each byte of a word is one printable character, and
SentencePiece's, where a space is ▁ and a character without a token is its bytes as <0xXX>.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from engine.errors import ModelError
from engine.text.pretokenizers import Pretokenizer
from engine.text.vocab import Vocab
from engine.text.words import word_pattern

_LOST = "\0lost\0" * 4  # no text has this as one character


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
) -> Callable[[str], list[int]]:
    """Encoding of plain text with GPT-2's alphabet; ModelError on a malformed merge."""
    pairs = _pairs(merges)
    stand_ins = _stand_ins(vocab, pairs)
    tokenizer = _tokenizer(vocab.ids | stand_ins, pairs, ignore_merges=pre.ignore_merges)
    to_alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([word_splitter(pre), to_alphabet])
    n_vocab = len(vocab.tokens)
    spelled = {i: _spelled(vocab, symbol) for symbol, i in stand_ins.items()}

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        if spelled and max(ids, default=0) >= n_vocab:
            ids = [i for symbol in ids for i in spelled.get(symbol, (symbol,))]
        return ids

    return encode


def escaped_encoder(
    vocab: Vocab, merges: Sequence[str], pre: Pretokenizer
) -> Callable[[str], list[int]]:
    """Encoding of plain text with SentencePiece's alphabet, line by line."""
    # A character with neither a token nor byte tokens keeps its neighbours apart, and is lost.
    lost = len(vocab.tokens)
    tokenizer = _tokenizer(vocab.ids | {_LOST: lost}, _pairs(merges), unknown=_LOST)
    pattern = Regex(word_pattern(vocab.tokens))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern, "isolated")
    lines = re.compile("|".join(pre.patterns)).findall

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for line in lines(text.replace(" ", "▁")):
            whole = pre.newline_tokens and line[0] == "\n"
            if whole and line in vocab.ids:
                ids.append(vocab.ids[line])
            else:
                ids += tokenizer.encode(line, add_special_tokens=False).ids
        return [i for i in ids if i != lost] if lost in ids else ids

    return encode


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
    # A part may be a space itself, but is never empty.
    cuts = [merge.find(" ", 1) for merge in merges]
    if min(cuts, default=1) < 1:
        raise ModelError(f"tokenizer.ggml.merges: {merges[cuts.index(-1)]!r} is not a pair")
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge, cut in zip(merges, cuts, strict=True)]
    return list(dict.fromkeys(pairs))


def _stand_ins(vocab: Vocab, pairs: list[tuple[str, str]]) -> dict[str, int]:
    """Ids beyond the vocabulary for symbols that take part in merging but are no tokens."""
    symbols = dict.fromkeys(_CHARACTER_OF_BYTE.values())
    for left, right in pairs:
        symbols[left] = symbols[right] = symbols[left + right] = None
    absent = [symbol for symbol in symbols if symbol not in vocab.ids]
    return {symbol: len(vocab.tokens) + i for i, symbol in enumerate(absent)}


def _spelled(vocab: Vocab, symbol: str) -> list[int]:
    """What llama.cpp makes of a symbol without a token: its ASCII characters, the rest lost."""
    return [vocab.ids[c] for c in symbol if ord(c) < 128 and c in vocab.ids]
