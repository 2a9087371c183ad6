"""Which projectors speak, by the type that their files name."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gguf_serve.engine.encoders.reader import MediaReader
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.speech.pocket import PocketSpeaker
from gguf_serve.engine.speech.pocket_text import PocketSpeech
from gguf_serve.engine.speech.qwen3 import Qwen3Speaker, Qwen3Speech
from gguf_serve.engine.speech.speaker import Speaker, Speech
from gguf_serve.engine.text.tokenizer import Tokenizer
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs


class Kind(NamedTuple):
    """What makes a model's sounds, and what makes requests of texts."""

    speaker: Callable[[GGUFFile, EncoderWeights, Device, Programs], Speaker]
    speech: Callable[[Tokenizer, MediaReader, str], Speech]


KINDS = {
    "pockettts_gen": Kind(PocketSpeaker, PocketSpeech),
    "qwen3tts_gen": Kind(Qwen3Speaker, Qwen3Speech),
}


def find_kind(name: str) -> Kind:
    """ModelError for one that is not known."""
    if name not in KINDS:
        raise ModelError(
            f"sounds are made by {name!r}, which is not supported; known: {', '.join(KINDS)}"
        )
    return KINDS[name]
