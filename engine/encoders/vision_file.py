"""What a projector file says of its vision encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.media.prepare import PREPARE, ImageLimits

# Tokens of an image of free size, least and most, where the file does not say.
TOKENS: dict[str, tuple[int, int]] = {
    "qwen2vl_merger": (8, 4096),
    "qwen2.5vl_merger": (8, 4096),
    "qwen3vl_merger": (8, 4096),
    "glm4v": (8, 4096),
    "gemma4v": (70, 1120),
    "gemma4uv": (70, 1120),
    "pixtral": (8, 1024),
    "kimivl": (8, 1024),
    "lfm2": (64, 256),
    "ling3vl": (8, 4096),
    "minimax_m3": (8, 576),
}
# Patches a side that become one token, where the file does not say.
MERGE: dict[str, int] = {
    "qwen2vl_merger": 2,
    "qwen2.5vl_merger": 2,
    "qwen3vl_merger": 2,
    "glm4v": 2,
    "paddleocr": 2,
    "dots_ocr": 2,
    "gemma4v": 3,
    "gemma4uv": 3,
    "exaone4_5": 2,
    "adapter": 2,
    "gemma3": 4,
    "gemma3nv": 16,
}
JOINED = ("gemma4uv",)  # what becomes one token is one patch from the beginning
BETWEEN = ("adapter", "cogvlm")  # their tokens have one before and one after them
CAUSAL_GEMMA4 = (1536, 2560)  # widths of Gemma 4's text models that read images in order
OMNI = {"qwen2.5o": "qwen2.5vl_merger"}  # files that name one type for images and sounds
MOST_PATCH = 1024  # pixels of a side; no known model has more than 32
MOST_PATCHES = 4096  # of a side; tables with a number for each of a square must fit into memory
PLAIN = ("resampler", "internvl", "llama4")  # their inputs are made of patches, not of tokens


@dataclass(frozen=True, slots=True)
class VisionFile:
    """Hyperparameters of a vision encoder, from the metadata of its file."""

    kind: str
    width: int
    n_layers: int
    n_heads: int
    eps: float
    activation: str
    merge: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    limits: ImageLimits
    feature_layers: tuple[int, ...] = ()
    window_layers: tuple[int, ...] = ()  # after which layer windows of patches are merged
    window_pattern: int = 0  # every so many layers is global
    window_size: int = 0  # a side of a window in pixels
    n_kv: int = 0  # heads of K and V if they are fewer
    ffn_limit: float = 0.0  # of the factors of a gated FFN
    n_queries: int = 0  # of a resampler
    breaks: bool = False  # a token ends each row of an image but the last

    @property
    def patch(self) -> int:
        return self.limits.patch

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """(columns, rows) of the tokens that lie in a grid on an input of that size."""
        side = self.patch * (2 if self.kind in ("ldp", "ldpv2") else self.merge)
        return width // side, height // side

    def n_tokens(self, height: int, width: int) -> int:
        """The tokens of an input of that size."""
        columns, rows = self.token_grid(height, width)
        extra = 2 if self.kind in BETWEEN else rows - 1 if self.breaks else 0
        return self.n_queries or columns * rows + extra

    def sees_together(self, n_embd: int) -> bool:
        """Whether the tokens of an image see each other in a text model of that width."""
        if self.kind == "gemma4v":
            return n_embd not in CAUSAL_GEMMA4
        return self.kind in ("gemma3", "gemma4uv")


def read_vision_file(
    gguf: GGUFFile, min_tokens: int | None = None, max_tokens: int | None = None
) -> VisionFile:
    """The vision encoder of a projector file; ModelError if it is none that is known.

    ``min_tokens`` and ``max_tokens`` take the place of the type's own limits.
    """
    kind = gguf.get_str("clip.vision.projector_type", gguf.get_str("clip.projector_type", ""))
    kind = OMNI.get(kind, kind)
    if kind not in PREPARE:
        known = ", ".join(sorted(PREPARE))
        raise ModelError(f"{gguf.path}: projector type {kind!r} is not supported; known: {known}")
    version = gguf.get_int("clip.minicpmv_version", 0)
    return VisionFile(
        kind=kind,
        width=gguf.get_int("clip.vision.embedding_length"),
        n_layers=gguf.get_int("clip.vision.block_count"),
        n_heads=gguf.get_int("clip.vision.attention.head_count"),
        eps=gguf.get_float("clip.vision.attention.layer_norm_epsilon"),
        activation=_activation(gguf),
        merge=1 if kind in JOINED else _merge(gguf, kind),
        mean=_floats(gguf, "clip.vision.image_mean"),
        std=_floats(gguf, "clip.vision.image_std"),
        limits=_limits(gguf, kind, min_tokens, max_tokens, version),
        feature_layers=_ints(gguf, "clip.vision.feature_layer"),
        window_layers=_ints(gguf, "clip.vision.wa_layer_indexes"),
        window_pattern=gguf.get_int("clip.vision.n_wa_pattern", 0),
        window_size=gguf.get_int("clip.vision.window_size", 0),
        n_kv=gguf.get_int("clip.vision.attention.head_count_kv", 0),
        ffn_limit=gguf.get_float("clip.vision.swiglu_clamp", 0.0),
        n_queries=gguf.get_int("clip.minicpmv_query_num", 0),
        breaks="v.token_embd.img_break" in gguf.tensors,
    )


def _activation(gguf: GGUFFile) -> str:
    if gguf.metadata.get("clip.use_gelu"):
        return "gelu"
    return "silu" if gguf.metadata.get("clip.use_silu") else "gelu_quick"


def _merge(gguf: GGUFFile, kind: str) -> int:
    declared = gguf.get_int("clip.vision.spatial_merge_size", 0)
    declared = declared or gguf.get_int("clip.vision.projector.scale_factor", 0)
    return declared or MERGE.get(kind, 1)


def _limits(
    gguf: GGUFFile, kind: str, min_tokens: int | None, max_tokens: int | None, version: int
) -> ImageLimits:
    patch = _size(gguf, "clip.vision.patch_size", MOST_PATCH)
    merge = 1 if kind in PLAIN else _merge(gguf, kind)
    area = (patch * merge) ** 2
    if kind in JOINED:
        patch, merge = patch * merge, 1
    least, most = (n * area for n in TOKENS.get(kind, (0, 0)))
    least = gguf.get_int("clip.vision.image_min_pixels", least)
    most = gguf.get_int("clip.vision.image_max_pixels", most)
    sides = _ints(gguf, "clip.vision.image_grid_pinpoints")
    return ImageLimits(
        image_size=_size(gguf, "clip.vision.image_size", MOST_PATCHES * patch),
        patch=patch,
        merge=merge,
        min_pixels=least if min_tokens is None else min_tokens * area,
        max_pixels=most if max_tokens is None else max_tokens * area,
        canvases=tuple(zip(sides[::2], sides[1::2], strict=True)),
        preproc_size=gguf.get_int("clip.vision.preproc_image_size", 0),
        tiles=(
            gguf.get_int("clip.vision.preproc_min_tiles", 1),
            gguf.get_int("clip.vision.preproc_max_tiles", 12),
        ),
        version=version,
    )


def _size(gguf: GGUFFile, key: str, most: int) -> int:
    value = gguf.get_int(key)
    if not 1 <= value <= most:
        raise ModelError(f"{gguf.path}: {key} is {value}, not 1 to {most}")
    return value


def _ints(gguf: GGUFFile, key: str) -> tuple[int, ...]:
    return tuple(int(x) for x in np.asarray(gguf.metadata.get(key, ())))


def _floats(gguf: GGUFFile, key: str) -> tuple[float, ...]:
    values = tuple(float(x) for x in np.asarray(gguf.metadata.get(key, ())))
    if len(values) != 3:
        raise ModelError(f"{gguf.path}: {key} has {len(values)} values, not 3")
    return values
