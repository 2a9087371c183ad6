"""Unigram language models (``tokenizer.ggml.model`` is "t5"): the likeliest segmentation.

The Viterbi search is the ``tokenizers`` library's; what may match, and how white space is
written, follows llama.cpp's ``llm_tokenizer_ugm``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from tokenizers import Tokenizer, models

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.text.charsmap import CharsMap, normalizer
from gguf_serve.engine.text.vocab import Attribute, Vocab
from gguf_serve.engine.text.windows import MAX_WORD, WINDOW, too_long_word
from gguf_serve.engine.text.words import attached, word_end

# The library wants the unknown token among the others; this text stands for it, since
# "<unk>" written in a text is not it.
_UNMATCHABLE = "\0unknown\0" * 4


def unigram_encoder(
    vocab: Vocab, charsmap: CharsMap | None, add_space_prefix: bool, merge_spaces: bool
) -> Callable[[str], Iterator[list[int]]]:
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

    boundary = word_end(attached(vocab.tokens))
    # Without a token for a space, one is unknown, and of unknown characters side by side the
    # library makes one token.
    if "▁" not in vocab.ids:
        boundary = _nowhere

    def spaced(text: str, at_start: bool) -> str:
        """The text with ▁ for spaces."""
        if merge_spaces:
            return "".join("▁" + word for word in text.split(" ") if word)
        words = text.lstrip(" ") if at_start else text
        prefix = "▁" if at_start and add_space_prefix and words else ""
        return "▁" * (len(text) - len(words)) + prefix + words.replace(" ", "▁")

    def encode(text: str) -> Iterator[list[int]]:
        at_start = True
        for piece in joined(normalize(text), boundary):
            written = spaced(piece, at_start)
            at_start = False
            if written:
                (encoding,) = tokenizer.encode_batch_fast([written], add_special_tokens=False)
                yield [matched[i] for i in encoding.ids]

    return encode


def joined(parts: Iterable[str], boundary: Callable[[str, int, int], int | None]) -> Iterator[str]:
    """The text of the parts, cut where a word ends."""
    rest, seen = "", WINDOW  # up to where no word ends after a window
    for part in parts:
        rest += part
        while len(rest) > 2 * WINDOW:
            end = boundary(rest, seen, len(rest))
            if end is None:
                seen = len(rest) - 1
                if seen > MAX_WORD:
                    raise too_long_word()
                break
            yield rest[:end]
            rest, seen = rest[end:], WINDOW
    if rest:
        yield rest


def _nowhere(text: str, start: int, stop: int) -> int | None:
    return None
