"""What a projector file says of its encoder of sounds."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile

MARKERS: dict[str, tuple[str, str]] = {  # texts around a sound
    "ultravox": ("", ""),
    "qwen2a": ("<|audio_bos|>", "<|audio_eos|>"),
    "voxtral": ("[BEGIN_AUDIO]", ""),
    "qwen3a": ("<|audio_start|>", "<|audio_end|>"),
    "gemma4ua": ("<|audio>", "<audio|>"),
}


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

    def n_tokens(self, n_frames: int) -> int:
        """The tokens of a spectrogram of so many frames."""
        if self.kind == "qwen3a":
            return n_frames // 100 * 13
        if self.kind == "gemma4ua":
            return n_frames
        rows = n_frames // 2 if self.kind == "ultravox" else n_frames // 4
        return rows // self.stack


def read_audio_file(gguf: GGUFFile) -> AudioFile:
    """The encoder of sounds of a projector file; ModelError if it is none that is known."""
    kind = gguf.get_str("clip.audio.projector_type", gguf.get_str("clip.projector_type", ""))
    if kind not in MARKERS:
        known = ", ".join(sorted(MARKERS))
        raise ModelError(f"{gguf.path}: audio projector {kind!r} is not supported; known: {known}")
    return AudioFile(
        kind=kind,
        width=gguf.get_int("clip.audio.embedding_length"),
        n_layers=gguf.get_int("clip.audio.block_count"),
        n_heads=gguf.get_int("clip.audio.attention.head_count"),
        eps=gguf.get_float("clip.audio.attention.layer_norm_epsilon"),
        n_mels=gguf.get_int("clip.audio.num_mel_bins"),
        stack=gguf.get_int("clip.audio.projector.stack_factor", 1),
    )
