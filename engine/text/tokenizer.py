"""The tokenizer of a model, from the metadata of its GGUF file alone.

The roles of special tokens and the order of things follow llama.cpp's ``llama_vocab``
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp); token ids are
those that llama.cpp gives for the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from gguf_serve.engine.errors import ModelError, RequestError, TooManyTokensError
from gguf_serve.engine.text.bpe import byte_level_encoder, byte_level_piece, escaped_encoder
from gguf_serve.engine.text.charsmap import CharsMap
from gguf_serve.engine.text.detokenizer import TextDecoder
from gguf_serve.engine.text.dna import dna_encoder, dna_piece
from gguf_serve.engine.text.partition import SpecialTokens
from gguf_serve.engine.text.plamo import plamo_encoder
from gguf_serve.engine.text.pretokenizers import PRETOKENIZERS, Pretokenizer
from gguf_serve.engine.text.rwkv import longest_match_encoder, unescaped
from gguf_serve.engine.text.spm import escaped_piece, score_encoder
from gguf_serve.engine.text.unigram import unigram_encoder
from gguf_serve.engine.text.vocab import (
    PREFIX,
    Attribute,
    Vocab,
    assign_roles,
    assign_strips,
    read_vocab,
)
from gguf_serve.engine.text.windows import WINDOW
from gguf_serve.engine.text.wordpiece import wordpiece_encoder

Encode = Callable[[str], Iterator[list[int]]]

_HIDDEN = (Attribute.CONTROL | Attribute.UNKNOWN).value  # a flag's own & takes ten times as long


class Tokenizer:
    """Text to ids and back. Safe to use from several threads.

    ``encode_plain`` encodes text without special tokens, in parts; ``normal_piece`` gives the
    bytes of an ordinary token; ``prefix_space`` puts a space before text that follows no other.
    """

    def __init__(
        self,
        vocab: Vocab,
        encode_plain: Encode,
        normal_piece: Callable[[str], bytes],
        *,
        add_bos: bool = False,
        add_eos: bool = False,
        prefix_space: bool = False,
        strip_space: bool = False,
        separator: int | None = None,
    ) -> None:
        self.n_vocab = len(vocab.tokens)
        self.bos_id = vocab.roles.get("bos")
        self.eos_id = vocab.roles.get("eos")
        self.eot_id = vocab.roles.get("eot")
        self.eog_ids = vocab.eog_ids
        self.fim = vocab.fim()
        self.add_bos = add_bos
        self.add_eos = add_eos
        self._vocab = vocab
        self._encode_plain = encode_plain
        self._normal_piece = normal_piece
        self._special_tokens = SpecialTokens(vocab)
        self._prefix_space = prefix_space
        self._strip_space = strip_space
        # BERT ends with its separator, and its flags do not count
        bert = vocab.model == "bert"
        self._first = [_role(vocab, "bos")] if add_bos or bert else []
        self._last = [_role(vocab, "separator" if bert else "eos")] if add_eos or bert else []
        self._separator = separator  # between two texts, beside the end of the first
        self._pieces: list[bytes | None] = [None] * self.n_vocab
        self._found: dict[str, int | None] = {}

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = True,
        most: int | None = None,
    ) -> list[int]:
        """Ids of ``text``. RequestError if it is not valid Unicode, or has a word of more than
        ``windows.MAX_WORD`` characters.

        ``add_special``: with the tokens that the model wants at the beginning and the end.
        ``parse_special``: control tokens written in the text become those tokens.
        ``most``: a text of more tokens need not be encoded to its end, which a long one is not:
        TooManyTokensError then says how many were found.
        """
        ids: list[int] = []
        for part in self.parts(text, add_special=add_special, parse_special=parse_special):
            ids += part
            if most is not None and len(ids) > most and len(text) > WINDOW:
                raise TooManyTokensError(len(ids), most)
        return ids

    def first(self, text: str, n: int) -> list[int]:
        """The first n ids of ``text``, or fewer if that are all; nothing after is encoded."""
        ids: list[int] = []
        for part in self.parts(text):
            ids += part
            if len(ids) >= n:
                break
        return ids[:n]

    def parts(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> Iterator[list[int]]:
        """What ``encode`` gives, a part at a time; none takes long."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"U+{ord(text[error.start]):04X} at character {error.start}"
            raise RequestError(f"the text has a lone surrogate, {found}") from None
        if add_special:
            yield self._first
        after_special = True
        for piece in self._special_tokens.split(text, parse_special):
            if isinstance(piece, int):
                yield [piece]
                after_special = True
            else:
                space = " " if self._prefix_space and after_special else ""
                yield from self._encode_plain(space + piece)
                after_special = False
        if add_special:
            yield self._last

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control or unknown token, hidden from ordinary output."""
        return bool(self._vocab.attributes[self._checked(token_id)] & _HIDDEN)

    def encode_pairs(
        self, first: str, seconds: Sequence[str], most: int | None = None
    ) -> list[list[int]]:
        """A text with each of others, as rerankers want them: the end of the first, a separator,
        the second. TooManyTokensError as by ``encode``."""
        start = self.encode(first, most=most)
        start += [] if self._separator is None else [self._separator]
        left = None if most is None else max(most - len(start) + len(self._first), 0)
        ends = (self.encode(second, most=left)[len(self._first) :] for second in seconds)
        return [start + end for end in ends]

    def piece(self, token_id: int, special: bool = True) -> bytes:
        """The bytes that the token adds to a text; b"" for a special one if not ``special``.

        RequestError if there is no such token.
        """
        piece = self._pieces[self._checked(token_id)]
        if piece is None:
            piece = self._pieces[token_id] = self._new_piece(token_id)
        return piece if special or not self._vocab.attributes[token_id] & _HIDDEN else b""

    def token_of(self, text: str) -> int | None:
        """The first token that adds exactly this text, None if there is none."""
        if text not in self._found:
            wanted = text.encode()
            ids = (i for i in range(self.n_vocab) if self.piece(i) == wanted)
            self._found[text] = next(ids, None)
        return self._found[text]

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of ``ids``; invalid UTF-8 becomes U+FFFD.

        The first token loses the space that ``encode`` puts before a text, as in
        llama.cpp's detokenization; its removal of spaces before punctuation is left out,
        because it would change what the model said.
        """
        pieces = [self.piece(i, special) for i in ids]
        if pieces and self._strip_space:
            pieces[0] = pieces[0].removeprefix(b" ")
        return b"".join(pieces).decode(errors="replace")

    def decoder(self, special: bool = False, shown: Collection[int] = ()) -> TextDecoder:
        """A decoder for tokens that come one at a time, after other text.

        ``shown`` are special tokens that are text even if the others are not.
        """
        if not shown:
            return TextDecoder(partial(self.piece, special=special))
        return TextDecoder(lambda id: self.piece(id, special=special or id in shown))

    def _checked(self, token_id: int) -> int:
        if not 0 <= token_id < self.n_vocab:
            raise RequestError(f"token id {token_id} is not one of {self.n_vocab} tokens")
        return token_id

    def _new_piece(self, token_id: int) -> bytes:
        token = self._vocab.tokens[token_id]
        attributes = self._vocab.attributes[token_id]
        if attributes & (_HIDDEN | Attribute.USER_DEFINED):
            return token.encode()
        if attributes & Attribute.NORMAL:
            return self._normal_piece(token)
        if attributes & Attribute.BYTE:
            return _named_byte(token)
        return b""


def load_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that ``metadata`` describes.

    A file without one (model "no_vocab") gets a stand-in that knows only the number of
    tokens and cannot encode. ModelError, naming the value, if the tokenizer's kind is
    unknown or its parts do not fit together.
    """
    model = metadata.get(PREFIX + "model")
    if model in ("no_vocab", "none"):
        return _without_vocab(metadata)
    load = _LOADERS.get(str(model))
    if load is None:
        raise ModelError(f"unknown {PREFIX}model {model!r}; known: {', '.join(_LOADERS)}")
    # Encoders see the types in the file; roles and strips are about special tokens only.
    return load(read_vocab(metadata), metadata)


def _tokenizer(
    vocab: Vocab,
    metadata: Mapping[str, Any],
    encode: Encode,
    normal_piece: Callable[[str], bytes],
    **defaults: bool,
) -> Tokenizer:
    """A tokenizer with the flags of the file; ``defaults`` where it has none."""
    assign_roles(vocab)
    assign_strips(vocab, metadata)
    add_space_prefix = _flag(metadata, "add_space_prefix", defaults.get("space_prefix", False))
    add_separator = _flag(metadata, "add_sep_token", defaults.get("add_separator", False))
    return Tokenizer(
        vocab,
        encode,
        normal_piece,
        add_bos=_flag(metadata, "add_bos_token", defaults.get("add_bos", False)),
        add_eos=_flag(metadata, "add_eos_token", defaults.get("add_eos", False)),
        prefix_space=add_space_prefix and vocab.model == "llama",
        strip_space=add_space_prefix,
        separator=vocab.roles.get("separator") if add_separator else None,
    )


def _load_gpt2(vocab: Vocab, metadata: Mapping[str, Any]) -> Tokenizer:
    return _load_bpe(vocab, metadata, _pretokenizer(metadata))


def _load_hybriddna(vocab: Vocab, metadata: Mapping[str, Any]) -> Tokenizer:
    pre = _pretokenizer(metadata)
    encode = dna_encoder(vocab, byte_level_encoder(vocab, _merges(metadata), pre))
    return _tokenizer(
        vocab, metadata, encode, dna_piece, add_bos=pre.add_bos, add_separator=pre.add_separator
    )


def _pretokenizer(metadata: Mapping[str, Any]) -> Pretokenizer:
    name = str(metadata.get(PREFIX + "pre", ""))
    pre = PRETOKENIZERS.get(name)
    if pre is None:
        raise ModelError(f"unknown {PREFIX}pre {name!r}; known: {', '.join(sorted(PRETOKENIZERS))}")
    return pre


def _load_gemma4(vocab: Vocab, metadata: Mapping[str, Any]) -> Tokenizer:
    return _load_bpe(vocab, metadata, PRETOKENIZERS["gemma4"])


def _load_bpe(vocab: Vocab, metadata: Mapping[str, Any], pre: Pretokenizer) -> Tokenizer:
    merges = _merges(metadata)
    if pre.escape_spaces:
        encode, piece = escaped_encoder(vocab, merges, pre), escaped_piece
    else:
        encode, piece = byte_level_encoder(vocab, merges, pre), byte_level_piece
    if pre.always_bos:
        metadata = {**metadata, PREFIX + "add_bos_token": True}
    return _tokenizer(
        vocab, metadata, encode, piece, add_bos=pre.add_bos, add_separator=pre.add_separator
    )


def _merges(metadata: Mapping[str, Any]) -> Sequence[str]:
    merges = metadata.get(PREFIX + "merges")
    if not isinstance(merges, Sequence):
        raise ModelError(f"{PREFIX}merges is missing or is not a list of strings")
    return merges


def _load_whitespace(vocab: Vocab, metadata: Mapping[str, Any]) -> Tokenizer:
    """White space is dropped, and capitals if the file says so; Jina's Chinese embeddings."""
    lower = _flag(metadata, "normalizer.lowercase", False)
    encode = escaped_encoder(vocab, _merges(metadata), PRETOKENIZERS["whitespace"])
    return _tokenizer(
        vocab, metadata, lambda text: encode(text.lower() if lower else text), escaped_piece
    )


def _load_rwkv(vocab: Vocab, metadata: Mapping[str, Any]) -> Tokenizer:
    return _tokenizer(vocab, metadata, longest_match_encoder(vocab), unescaped)


def _load_plamo2(vocab: Vocab, metadata: Mapping[str, Any]) -> Tokenizer:
    without = {f"{PREFIX}{flag}": False for flag in ("add_bos_token", "add_eos_token")}
    return _tokenizer(vocab, {**metadata, **without}, plamo_encoder(vocab), str.encode)


def _load_llama(vocab: Vocab, metadata: Mapping[str, Any]) -> Tokenizer:
    encode = score_encoder(vocab)
    return _tokenizer(vocab, metadata, encode, escaped_piece, add_bos=True, space_prefix=True)


def _load_bert(vocab: Vocab, metadata: Mapping[str, Any]) -> Tokenizer:
    lowercase = _flag(metadata, "normalizer.lowercase", True)
    strip_accents = _flag(metadata, "normalizer.strip_accents", lowercase)
    encode = wordpiece_encoder(vocab, lowercase, strip_accents)
    return _tokenizer(vocab, metadata, encode, escaped_piece, add_bos=True)


def _load_t5(vocab: Vocab, metadata: Mapping[str, Any]) -> Tokenizer:
    charsmap = metadata.get(PREFIX + "precompiled_charsmap")
    if charsmap is not None:
        # int8 or uint8: the same bytes
        charsmap = CharsMap(np.asarray(charsmap).astype(np.uint8).tobytes())
    encode = unigram_encoder(
        vocab,
        charsmap,
        add_space_prefix=_flag(metadata, "add_space_prefix", False),
        merge_spaces=_flag(metadata, "remove_extra_whitespaces", False),
    )
    return _tokenizer(vocab, metadata, encode, escaped_piece, add_eos=True)


_LOADERS: dict[str, Callable[[Vocab, Mapping[str, Any]], Tokenizer]] = {
    "gpt2": _load_gpt2,
    "llama": _load_llama,
    "gemma4": _load_gemma4,
    "bert": _load_bert,
    "rwkv": _load_rwkv,
    "plamo2": _load_plamo2,
    "hybriddna": _load_hybriddna,
    "whitespace": _load_whitespace,
    "t5": _load_t5,
}


def _without_vocab(metadata: Mapping[str, Any]) -> Tokenizer:
    key = f"{metadata.get('general.architecture', '')}.vocab_size"
    n_vocab = metadata.get(key)
    if not isinstance(n_vocab, int) or not 0 < n_vocab < 1 << 24:
        raise ModelError(f"a file without a tokenizer needs {key}, which is {n_vocab!r}")

    def encode(text: str) -> Iterator[list[int]]:
        raise RequestError("this model has no tokenizer: give token ids instead of text")

    vocab = Vocab("no_vocab", [""] * n_vocab, {}, [], bytearray(n_vocab), {})
    return Tokenizer(vocab, encode, str.encode)


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    return bool(metadata.get(PREFIX + name, default))


def _role(vocab: Vocab, role: str) -> int:
    if role not in vocab.roles:
        raise ModelError(f"the tokenizer adds a {role} token, but the file does not name one")
    return vocab.roles[role]


def _named_byte(token: str) -> bytes:
    """The byte of a token like <0x0A>; any other text of this type adds nothing."""
    try:
        return bytes([int(token.removeprefix("<0x").removesuffix(">"), 16)])
    except ValueError:
        return b""
