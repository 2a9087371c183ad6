"""What of a model needs no device: its tokenizer, its template, the reader of its images.

A front, whose engines are elsewhere, loads no more than this.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.chat.prompt import Template
from gguf_serve.engine.chat.rendering.confined import ConfinedTemplate, Templates
from gguf_serve.engine.chat.rendering.selection import named_template, select_template
from gguf_serve.engine.errors import ModelError, naming, refusing
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.loading.media_loader import media_reader, open_media, speech_of
from gguf_serve.engine.loading.preparation import read_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from gguf_serve.engine.encoders.reader import MediaReader
    from gguf_serve.engine.speech.speaker import Speech


class Texts(Struct, frozen=True):
    """``media``: None where the options name no projector, ``speech``: where it does not speak."""

    tokenizer: Tokenizer
    chat_template: Template
    media: MediaReader | None
    speech: Speech | None = None


def load_texts(path: Path, options: EngineOptions) -> Texts:
    """Read them from a model file and its projector's. Raises ModelError."""
    with refusing(path):
        gguf, hparams = read_model(path, options)
        tokenizer, template = read_text(gguf, hparams, options)
        projector = open_media(options, hparams)
        reader = speech = None
        if projector is not None:
            reader = media_reader(projector, options, hparams)
            speech = speech_of(projector, tokenizer, reader)
            projector.gguf.close()
        template.check()
        gguf.close()
    return Texts(tokenizer, template, reader, speech)


def read_text(
    gguf: GGUFFile, hparams: Hyperparameters, options: EngineOptions
) -> tuple[Tokenizer, ConfinedTemplate]:
    """Of an open file. Raises ModelError."""
    with naming(gguf.path):
        tokenizer = load_tokenizer(gguf.metadata)
        _check_vocabulary(gguf, hparams, tokenizer)
    return tokenizer, _chat_template(gguf.metadata, tokenizer, options)


def _check_vocabulary(gguf: GGUFFile, h: Hyperparameters, tokenizer: Tokenizer) -> None:
    """Every token that can be drawn has a text, and every one of the text an embedding."""
    if tokenizer.n_vocab != h.n_vocab:
        raise ModelError(
            f"{gguf.path}: the tokenizer has {tokenizer.n_vocab} tokens, "
            f"token_embd.weight {h.n_vocab} rows"
        )


def _chat_template(
    metadata: Mapping[str, Any], tokenizer: Tokenizer, options: EngineOptions
) -> ConfinedTemplate:
    """In a process that starts while the model loads."""

    def text(token: int | None) -> str:
        return "" if token is None else tokenizer.piece(token).decode("utf-8", "replace")

    if options.chat_template is not None:
        source, tool_use = named_template(options.chat_template), None
    else:
        source, tool_use = select_template(metadata)
    return ConfinedTemplate(
        Templates(source, tool_use, text(tokenizer.bos_id), text(tokenizer.eos_id))
    )
