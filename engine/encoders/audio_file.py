"""What a projector file says of its encoder of sounds."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.media.sounds import SOUNDS, SoundInput

OMNI = {"qwen2.5o": "qwen2a"}  # files that name one type for images and sounds
SAMPLES = ("gemma4ua",)  # types whose input has samples in the place of mels


@dataclass(frozen=True, slots=True)
class AudioFile:
    """Hyperparameters of an encoder of sounds."""

    kind: str
    width: int
    n_layers: int
    n_heads: int
    eps: float
    n_mels: int
    stack: int  # rows that become one

    @property
    def input(self) -> SoundInput:
        """How sounds are given to it."""
        return SOUNDS[self.kind]

    def n_tokens(self, n_frames: int) -> int:
        """The tokens of a spectrogram of so many frames."""
        return self.input.tokens(n_frames, self.stack)


def read_audio_file(gguf: GGUFFile) -> AudioFile:
    """The encoder of sounds of a projector file; ModelError if it is none that is known."""
    kind = gguf.get_str("clip.audio.projector_type", gguf.get_str("clip.projector_type", ""))
    kind = OMNI.get(kind, kind)
    if kind not in SOUNDS:
        known = ", ".join(sorted(SOUNDS))
        raise ModelError(f"{gguf.path}: audio projector {kind!r} is not supported; known: {known}")
    width = gguf.get_int("clip.audio.embedding_length")
    return AudioFile(
        kind=kind,
        width=width,
        n_layers=gguf.get_int("clip.audio.block_count"),
        n_heads=gguf.get_int("clip.audio.attention.head_count"),
        eps=gguf.get_float("clip.audio.attention.layer_norm_epsilon"),
        n_mels=width if kind in SAMPLES else gguf.get_int("clip.audio.num_mel_bins"),
        stack=gguf.get_int("clip.audio.projector.stack_factor", 1),
    )
