"""The vocabulary of a GGUF file: token texts, types, scores, and which ids are special.

Knows no text and no way of splitting it. The roles of tokens follow llama.cpp's
``llama_vocab::impl::load`` (https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp),
since files are converted for that reader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntFlag
from typing import Any

import numpy as np
from msgspec import Struct

from gguf_serve.engine.errors import ModelError

PREFIX = "tokenizer.ggml."


class Attribute(IntFlag):
    """What a token is; a file gives one type per token, the rest comes from its text."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 4
    USER_DEFINED = 8
    UNUSED = 16
    BYTE = 32
    LSTRIP = 64  # swallows white space before it
    RSTRIP = 128  # swallows white space after it


# index: the file's token type; 0 and everything above 6 is undefined
_ATTRIBUTE_OF_TYPE = np.array([0, 1, 2, 4, 8, 16, 32], dtype=np.uint8)

# Roles that a file may leave out, by tokenizer model.
_DEFAULT_IDS: dict[str, dict[str, int]] = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "bert": {"bos": 101, "unknown": 100, "separator": 102},
    "gpt2": {"bos": 11, "eos": 11},
    "t5": {"eos": 1, "unknown": 2},
    "rwkv": {},
    "plamo2": {"bos": 1, "eos": 2, "unknown": 0},
    "whitespace": {"bos": 11, "eos": 11},
    "hybriddna": {"bos": 11, "eos": 11},
    "gemma4": {},
}

_ID_KEYS: dict[str, tuple[str, ...]] = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unknown": ("unknown_token_id",),
    "separator": ("seperator_token_id",),  # the format's own spelling
    "fim_prefix": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suffix": ("fim_suf_token_id", "suffix_token_id"),
    "fim_middle": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_repo": ("fim_rep_token_id",),
    "fim_separator": ("fim_sep_token_id",),
}

# Texts that give a role away where the file does not name the token.
_ROLE_TEXTS: dict[str, tuple[str, ...]] = {
    "eot": (
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "<｜end▁of▁sentence｜>",
        "<end_of_utterance>",
    ),
    "eom": ("<|eom_id|>",),
    "fim_prefix": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suffix": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_middle": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_repo": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_separator": ("<|file_sep|>",),
}

_END_OF_GENERATION = (
    *_ROLE_TEXTS["eot"],
    *_ROLE_TEXTS["eom"],
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)

# gpt-oss: part of the visible message structure, never hidden.
_ALWAYS_RENDERED = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")


class FimTokens(Struct, frozen=True):
    """Ids of the fill-in-the-middle tokens; None where the vocabulary has none."""

    prefix: int | None = None
    suffix: int | None = None
    middle: int | None = None
    pad: int | None = None
    repo: int | None = None
    separator: int | None = None


class Vocab(Struct):
    """Tokens by id; ``attributes[id]`` is an ``Attribute``, ``roles`` maps names to ids."""

    model: str
    tokens: list[str]
    ids: dict[str, int]
    scores: list[float]  # empty where the file has none
    attributes: bytearray
    roles: dict[str, int]
    eog_ids: frozenset[int] = frozenset()

    def having(self, attribute: Attribute) -> list[int]:
        """Ids of all tokens with any bit of ``attribute``, ascending."""
        found = np.frombuffer(self.attributes, dtype=np.uint8) & int(attribute)
        return [int(i) for i in np.flatnonzero(found)]

    def fim(self) -> FimTokens:
        """The fill-in-the-middle tokens among the roles."""
        return FimTokens(
            prefix=self.roles.get("fim_prefix"),
            suffix=self.roles.get("fim_suffix"),
            middle=self.roles.get("fim_middle"),
            pad=self.roles.get("fim_pad"),
            repo=self.roles.get("fim_repo"),
            separator=self.roles.get("fim_separator"),
        )


def read_vocab(metadata: Mapping[str, Any]) -> Vocab:
    """The vocabulary in ``metadata``; ModelError if an array is missing, short or ambiguous."""
    model = str(metadata[PREFIX + "model"])
    tokens = _tokens(metadata)
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(ids) != len(tokens):
        i = next(i for i, token in enumerate(tokens) if ids[token] != i)
        raise ModelError(
            f"{PREFIX}tokens: {tokens[i]!r} has the ids {i} and {ids[tokens[i]]}, expected one"
        )
    scores = _numbers(metadata, "scores", len(tokens))
    types = _numbers(metadata, "token_type", len(tokens))
    if types is None:
        attributes = np.full(len(tokens), Attribute.NORMAL, dtype=np.uint8)
    else:
        known = (types >= 0) & (types < len(_ATTRIBUTE_OF_TYPE))
        attributes = _ATTRIBUTE_OF_TYPE[np.where(known, types, 0).astype(np.intp)]
    return Vocab(
        model=model,
        tokens=tokens,
        ids=ids,
        scores=[] if scores is None else scores.astype(np.float32).tolist(),
        attributes=bytearray(attributes.tobytes()),
        roles=_given_roles(metadata, model, len(tokens)),
    )


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get(PREFIX + "tokens")
    if not isinstance(tokens, Sequence) or isinstance(tokens, str) or not len(tokens):
        raise ModelError(f"{PREFIX}tokens is missing or is not a list of strings")
    texts = list(tokens)
    if "" in texts:
        texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
    return texts


def _numbers(
    metadata: Mapping[str, Any], name: str, n_tokens: int
) -> np.ndarray[Any, np.dtype[Any]] | None:
    values = metadata.get(PREFIX + name)
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iuf":
        raise ModelError(
            f"{PREFIX}{name} is an array of {array.dtype} and shape {array.shape}, expected a "
            "list of numbers"
        )
    if len(array) < n_tokens:
        raise ModelError(f"{PREFIX}{name} has {len(array)} entries for {n_tokens} tokens")
    return array[:n_tokens]


def _given_roles(metadata: Mapping[str, Any], model: str, n_tokens: int) -> dict[str, int]:
    roles = {role: i for role, i in _DEFAULT_IDS[model].items() if i < n_tokens}
    if metadata.get(PREFIX + "pre") in ("glm4", "chatglm-bpe"):
        roles.pop("bos", None)  # these models have none, and no key to say so
    for role, keys in _ID_KEYS.items():
        for key in keys:
            value = metadata.get(PREFIX + key)
            # Converters write 2**32 - 1 for "none"; llama.cpp ignores ids out of range.
            if isinstance(value, int) and 0 <= value < n_tokens:
                roles[role] = value
    return roles


def assign_roles(vocab: Vocab) -> None:
    """Complete ``roles``, ``eog_ids`` and ``attributes`` of ``vocab`` from well-known texts."""
    for role, texts in _ROLE_TEXTS.items():
        if role not in vocab.roles:
            found = next((vocab.ids[text] for text in texts if text in vocab.ids), None)
            if found is not None:
                vocab.roles[role] = found
                vocab.attributes[found] |= Attribute.CONTROL
    ends = {vocab.roles.get(role) for role in ("fim_pad", "fim_repo", "fim_separator")}
    for text in _END_OF_GENERATION:
        if text in vocab.ids:
            ends.add(vocab.ids[text])
            vocab.attributes[vocab.ids[text]] |= Attribute.CONTROL
    for text in _ALWAYS_RENDERED:
        if text in vocab.ids:
            vocab.attributes[vocab.ids[text]] = Attribute.USER_DEFINED
    ends |= {vocab.roles.get(role) for role in ("eos", "eot", "eom")}
    _drop_false_ends(vocab, ends)
    vocab.eog_ids = frozenset(i for i in ends if i is not None)


def _drop_false_ends(vocab: Vocab, ends: set[int | None]) -> None:
    """Two families use a well-known end text for something that does not end a turn."""
    texts = {vocab.tokens[i] for i in ends if i is not None}
    calls = bool(texts & {"<|call|>", "<|calls|>"})
    if "<|end|>" in texts and calls and texts & {"<|return|>", "<|flush|>"}:
        ends.discard(vocab.ids["<|end|>"])  # harmony: ends a message, another may follow
        vocab.attributes[vocab.ids["<|end|>"]] = Attribute.USER_DEFINED
    if "</s>" in texts and "<|tool_response>" in texts:
        ends.discard(vocab.ids["</s>"])  # gemma 4: an HTML tag
        vocab.attributes[vocab.ids["</s>"]] = Attribute.NORMAL


def assign_strips(vocab: Vocab, metadata: Mapping[str, Any]) -> None:
    """Set LSTRIP and RSTRIP, which files do not carry, by the names of the models concerned."""
    pre = str(metadata.get(PREFIX + "pre", ""))
    architecture = str(metadata.get("general.architecture", ""))
    name = str(metadata.get("general.name", "")).lower()
    mask_first = any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code"))
    if mask_first or any(part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")):
        _set_strip(vocab, ["<mask>"], Attribute.LSTRIP)
    elif "phi-3" in name or "phi3" in name:
        kinds = Attribute.CONTROL | Attribute.USER_DEFINED | Attribute.UNKNOWN
        keep = {"<unk>", "<s>", "<|endoftext|>"}
        texts = {vocab.tokens[i] for i in vocab.having(kinds)} | {"</s>"}
        _set_strip(vocab, sorted(texts - keep), Attribute.RSTRIP)
    elif "modern-bert" in name:
        _set_strip(vocab, ["[MASK]"], Attribute.LSTRIP)


def _set_strip(vocab: Vocab, texts: Sequence[str], attribute: Attribute) -> None:
    for text in texts:
        if text in vocab.ids:
            vocab.attributes[vocab.ids[text]] |= attribute
