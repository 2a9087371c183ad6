"""What a projector file says of its encoder of sounds."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from gguf_serve.engine.encoders.geometry import Doubles
from gguf_serve.engine.encoders.vision_file import get_ints
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.media.sounds import SOUNDS, SoundInput, parakeet

OMNI = {"qwen2.5o": "qwen2a"}  # files that name one type for images and sounds
STACKED_BY = {"mimo_audio": "clip.audio.local_group_size"}  # the key, if it is another
SAMPLES = ("gemma4ua",)  # types whose input has samples in the place of mels


class AudioFile(Struct, frozen=True):
    """Hyperparameters of an encoder of sounds."""

    kind: str
    width: int
    n_layers: int
    n_heads: int
    eps: float
    n_mels: int
    stack: int  # rows that become one
    own_input: SoundInput | None = None  # where the file has a say in it
    n_block: int = 0  # rows that attend to each other
    reach: int = 0  # the longest distance that has an embedding of its own
    feature_layers: tuple[int, ...] = ()  # whose outputs the projector reads beside the last
    query_head: int = 0  # values of a head of a Q-Former
    window: int = 0  # rows that a row sees before it, in layers with a window
    window_modes: tuple[int, ...] = ()  # by layer: -1 no window
    n_local: int = 0  # layers over groups of ``stack`` rows
    codebooks: tuple[int, ...] = ()  # codes of each

    @property
    def input(self) -> SoundInput:
        """How sounds are given to it."""
        return self.own_input or SOUNDS[self.kind]

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
    if kind == "mimo_audio":
        _check_codes(gguf)
    return AudioFile(
        kind=kind,
        width=width,
        n_layers=gguf.get_int("clip.audio.block_count"),
        n_heads=gguf.get_int("clip.audio.attention.head_count"),
        eps=gguf.get_float("clip.audio.attention.layer_norm_epsilon"),
        n_mels=width if kind in SAMPLES else gguf.get_int("clip.audio.num_mel_bins"),
        stack=gguf.get_int(STACKED_BY.get(kind, "clip.audio.projector.stack_factor"), 1),
        own_input=_own_input(gguf) if kind == "parakeet" else None,
        n_block=gguf.get_int("clip.audio.chunk_size", 0),
        reach=gguf.get_int("clip.audio.max_pos_emb", 0),
        feature_layers=get_ints(gguf, "clip.audio.feature_layer"),
        window=gguf.get_int("clip.audio.window_size", 0),
        window_modes=get_ints(gguf, "clip.audio.wa_pattern_mode"),
        n_local=gguf.get_int("clip.audio.local_block_count", 0),
        codebooks=get_ints(gguf, "clip.audio.rvq.codebook_size"),
        query_head=width // gguf.get_int("clip.audio.projector.head_count", 1),
    )


def _check_codes(gguf: GGUFFile) -> None:
    """ModelError where lists by layer or by book have other lengths than there are of these."""
    sizes = get_ints(gguf, "clip.audio.rvq.codebook_size")
    for name in ("a.rvq.codebook.weight", "mm.a.code_embd.weight"):
        shape = gguf.tensors[name].shape if name in gguf.tensors else ()
        n_codes, n_books = shape[1:] if len(shape) == 3 else (0, 0)
        if len(sizes) != n_books or not all(0 < size <= n_codes for size in sizes):
            raise ModelError(
                f"{gguf.path}: {name} has {n_books} books of {n_codes} codes, and "
                f"clip.audio.rvq.codebook_size is {list(sizes)}"
            )
    n, modes = gguf.get_int("clip.audio.block_count"), get_ints(gguf, "clip.audio.wa_pattern_mode")
    if len(modes) != n:
        raise ModelError(
            f"{gguf.path}: clip.audio.wa_pattern_mode has {len(modes)} values for {n} layers"
        )


def _own_input(gguf: GGUFFile) -> SoundInput:
    return parakeet(*(_doubles(gguf, name) for name in ("a.window", "a.mel_filters")))


def _doubles(gguf: GGUFFile, name: str) -> Doubles:
    """A float32 tensor, rows first."""
    info = gguf.tensors.get(name)
    if info is None or info.type.name != "F32":
        found = "missing" if info is None else f"of type {info.type.name}"
        raise ModelError(f"{gguf.path}: tensor {name} is {found}, expected one of F32")
    return gguf.data(name).view(np.float32).reshape(info.shape[::-1]).astype(np.float64)
