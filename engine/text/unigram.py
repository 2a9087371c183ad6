"""Unigram language models (``tokenizer.ggml.model`` is "t5"): the likeliest segmentation.

The Viterbi search is the ``tokenizers`` library's; what may match, and how white space is
written, follows llama.cpp's ``llm_tokenizer_ugm``.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer, models

from engine.errors import ModelError
from engine.text.charsmap import CharsMap, normalizer
from engine.text.vocab import Attribute, Vocab

# The library wants the unknown token among the others; this text stands for it, since
# "<unk>" written in a text is not it.
_UNMATCHABLE = "\0unknown\0" * 4


def unigram_encoder(
    vocab: Vocab, charsmap: CharsMap | None, add_space_prefix: bool, merge_spaces: bool
) -> Callable[[str], list[int]]:
    """Encoding of plain text; ModelError if scores or the unknown token are missing."""
    if not vocab.scores or "unknown" not in vocab.roles:
        raise ModelError("a t5 tokenizer needs tokenizer.ggml.scores and an unknown token")
    user_defined = vocab.having(Attribute.USER_DEFINED)
    # id in the model -> id in the vocabulary; only these kinds of token are matched
    matched = vocab.having(Attribute.NORMAL | Attribute.UNUSED | Attribute.USER_DEFINED)
    matched = [i for i in matched if i != vocab.roles["unknown"]]
    scores = dict(enumerate(vocab.scores)) | dict.fromkeys(user_defined, 0.0)
    pieces = [(vocab.tokens[i], scores[i]) for i in matched]
    # Its score counts only towards the lowest one, from which the library derives the real.
    pieces.append((_UNMATCHABLE, 0.0))
    matched.append(vocab.roles["unknown"])
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=len(pieces) - 1, byte_fallback=False))
    normalize = normalizer(charsmap, [vocab.tokens[i] for i in user_defined])

    def encode(text: str) -> list[int]:
        text = normalize(text)
        if merge_spaces:
            text = "".join("▁" + word for word in text.split(" ") if word)
        else:
            words = text.lstrip(" ")
            prefix = "▁" if add_space_prefix and words else ""
            text = "▁" * (len(text) - len(words)) + prefix + words.replace(" ", "▁")
        if not text:
            return []
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return [matched[i] for i in ids]

    return encode
