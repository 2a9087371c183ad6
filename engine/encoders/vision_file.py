"""What a projector file says of its vision encoder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct

from gguf_serve.engine.encoders.geometry import Grid
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.media.piece import ImageLimits
from gguf_serve.engine.media.prepare import PREPARE
from gguf_serve.engine.media.views import V4_ALIGN, granite4_tokens, v4_tokens

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
    "hunyuanvl": (256, 16384),
}
OCR_PATCH, OCR_MERGE, OCR_SIDE = 16, 4, 1024  # DeepSeek-OCR's, whatever the file says
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
    "hunyuanvl": 2,
    "mimovl": 2,
    "dots3note_v": 2,
    "step3vl": 4,
    "deepseek4v": 3,
    "deepseekocr": OCR_MERGE,
    "deepseekocr2": OCR_MERGE,
}
# Tiles of an image, fewest and most, where the file does not say.
TILES: dict[str, tuple[int, int]] = {"deepseekocr": (2, 9), "deepseekocr2": (2, 6)}
JOINED = ("gemma4uv",)  # what becomes one token is one patch from the beginning
CAUSAL_GEMMA4 = (1536, 2560)  # widths of Gemma 4's text models that read images in order
OMNI = {"qwen2.5o": "qwen2.5vl_merger"}  # files that name one type for images and sounds
MOST_PATCH = 1024  # pixels of a side; no known model has more than 32
MOST_PATCHES = 4096  # of a side; tables with a number for each of a square must fit into memory
PLAIN = ("resampler", "internvl", "llama4")  # their inputs are made of patches, not of tokens
SECOND_KERNEL = "v.patch_embd.weight.1"  # beside the one for the first frame
POOLED = 8  # tokens a side of Yasa 2
USUAL_TOKENS = 4  # a side, of an input of any size that is recorded at the start
FEWEST_TOKENS = 16  # that an image may be limited to, where all of its tokens are counted


OCR_COLUMNS = OCR_SIDE // OCR_PATCH // OCR_MERGE


def _ocr_rows(columns: int, rows: int) -> int:
    """A newline after each row of tokens, of which stacked tiles lie side by side; after the
    overview one token more."""
    n_tiles = rows // columns
    return columns * (columns * n_tiles + 1) + (columns == OCR_COLUMNS)


# Tokens of an input of that many columns and rows of merged patches, where it is not their product.
COUNTED: dict[str, Callable[[int, int], int]] = {
    "adapter": lambda columns, rows: columns * rows + 2,
    "cogvlm": lambda columns, rows: columns * rows + 2,
    "hunyuanvl": lambda columns, rows: (columns + 1) * rows + 2,
    "yasa2": lambda columns, rows: POOLED**2,
    "deepseekocr": _ocr_rows,
    "deepseekocr2": lambda columns, rows: columns * rows + (columns == OCR_COLUMNS),
    "deepseek4v": v4_tokens,
}


class Sam(Struct, frozen=True):
    """Hyperparameters of DeepSeek-OCR's first transformer."""

    n_layers: int
    n_heads: int
    width: int
    window: int  # patches a side


class VisionFile(Struct, frozen=True):
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
    n_used_experts: int = 0  # of each patch, in layers that have experts
    n_kv: int = 0  # heads of K and V if they are fewer
    ffn_limit: float = 0.0  # of the factors of a gated FFN
    n_queries: int = 0  # of a resampler
    two_frames: bool = False  # its kernel is for two frames of a video
    n_frames: int = 1  # of a video in an input
    breaks: bool = False  # a token ends each row of an image but the last
    window_modes: tuple[int, ...] = ()  # by layer: -1 all, 0 a window of rows, 1 of columns
    sam: Sam | None = None  # a second transformer, before this one
    query_sides: tuple[int, int] = (0, 0)  # queries and patches a side of a Q-Former's windows
    query_offsets: tuple[int, ...] = ()  # by projector: where its queries are in 2 x 2, -1: means

    @property
    def patch(self) -> int:
        return self.limits.patch

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """(columns, rows) of the tokens that lie in a grid on an input of that size."""
        merge = 2 if self.kind in ("ldp", "ldpv2") else self.merge
        return -(-(width // self.patch) // merge), -(-(height // self.patch) // merge)

    def n_tokens(self, height: int, width: int, layout: tuple[int, ...] = ()) -> int:
        """The tokens of an input of that size and layout (Tile.layout)."""
        columns, rows = self.token_grid(height, width)
        if self.kind == "granite4_vision":
            return granite4_tokens(self.granite4_side, layout)
        if self.kind in COUNTED:
            return COUNTED[self.kind](columns, rows)
        return self.n_queries or columns * rows + (rows - 1 if self.breaks else 0)

    @property
    def granite4_side(self) -> int:
        """Tokens a side of one of Granite 4's tiles."""
        queries, window = self.query_sides
        return self.limits.image_size // self.patch // window * queries

    @property
    def usual(self) -> tuple[Grid, tuple[int, ...]]:
        """Rows and columns of the patches of an input that is recorded at the start, and its
        layout."""
        unit = max(self.merge, 1)
        side = max(self.limits.image_size // self.patch // unit, 1) * unit
        if self.limits.max_pixels:
            side = USUAL_TOKENS * unit
        if self.kind == "granite4_vision":
            return (2 * side, side), (1, 1, 1, 1)
        return (side, side), ()

    @property
    def marks(self) -> bool:
        """Whether rows of tokens, and all of them, have marks with positions of their own."""
        return self.kind == "hunyuanvl"

    def n_before(self, start: int) -> int:
        """Tokens before an image at place ``start`` of the prompt that only align it."""
        return V4_ALIGN - 1 - start % V4_ALIGN if self.kind == "deepseek4v" else 0

    def sees_together(self, n_embd: int) -> bool:
        """Whether the tokens of an image see each other in a text model of that width."""
        if self.kind == "gemma4v":
            return n_embd not in CAUSAL_GEMMA4
        return self.kind in ("gemma3", "gemma4uv", "deepseek4v")


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
        feature_layers=get_ints(gguf, "clip.vision.feature_layer"),
        window_layers=get_ints(gguf, "clip.vision.wa_layer_indexes"),
        window_pattern=gguf.get_int("clip.vision.n_wa_pattern", 0),
        window_size=gguf.get_int("clip.vision.window_size", 0),
        n_used_experts=gguf.get_int("clip.vision.expert_used_count", 0),
        n_kv=gguf.get_int("clip.vision.attention.head_count_kv", 0),
        ffn_limit=gguf.get_float("clip.vision.swiglu_clamp", 0.0),
        n_queries=gguf.get_int("clip.minicpmv_query_num", 0),
        two_frames=SECOND_KERNEL in gguf.tensors,
        breaks="v.token_embd.img_break" in gguf.tensors,
        window_modes=get_ints(gguf, "clip.vision.wa_pattern_mode"),
        sam=_sam(gguf) if kind in TILES else None,
        query_sides=(
            gguf.get_int("clip.vision.projector.query_side", 0),
            gguf.get_int("clip.vision.projector.window_side", 0),
        ),
        query_offsets=get_ints(gguf, "clip.vision.projector.spatial_offsets"),
    )


def _activation(gguf: GGUFFile) -> str:
    if gguf.metadata.get("clip.use_gelu"):
        return "gelu"
    return "silu" if gguf.metadata.get("clip.use_silu") else "gelu_quick"


def _sam(gguf: GGUFFile) -> Sam:
    b = "clip.vision.sam."
    return Sam(
        gguf.get_int(f"{b}block_count"), gguf.get_int(f"{b}head_count"),
        gguf.get_int(f"{b}embedding_length"), gguf.get_int("clip.vision.window_size"),
    )  # fmt: skip


def _merge(gguf: GGUFFile, kind: str) -> int:
    declared = gguf.get_int("clip.vision.spatial_merge_size", 0)
    declared = declared or gguf.get_int("clip.vision.projector.scale_factor", 0)
    return declared or MERGE.get(kind, 1)


def _limits(
    gguf: GGUFFile, kind: str, min_tokens: int | None, max_tokens: int | None, version: int
) -> ImageLimits:
    patch = OCR_PATCH if kind in TILES else _size(gguf, "clip.vision.patch_size", MOST_PATCH)
    merge = 1 if kind in PLAIN else _merge(gguf, kind)
    area = (patch * merge) ** 2
    if kind in JOINED:
        patch, merge = patch * merge, 1
    least, most = (n * area for n in TOKENS.get(kind, (0, 0)))
    least = gguf.get_int("clip.vision.image_min_pixels", least)
    most = gguf.get_int("clip.vision.image_max_pixels", most)
    sides = get_ints(gguf, "clip.vision.image_grid_pinpoints")
    fewest, most_tiles = TILES.get(kind, (1, 12))
    return ImageLimits(
        image_size=OCR_SIDE if kind in TILES else _image_size(gguf, MOST_PATCHES * patch, most),
        patch=patch,
        merge=merge,
        min_pixels=least if min_tokens is None else min_tokens * area,
        max_pixels=most if max_tokens is None else max_tokens * area,
        canvases=tuple(zip(sides[::2], sides[1::2], strict=True)),
        preproc_size=gguf.get_int("clip.vision.preproc_image_size", 0),
        tiles=(
            gguf.get_int("clip.vision.preproc_min_tiles", fewest),
            gguf.get_int("clip.vision.preproc_max_tiles", most_tiles),
        ),
        version=version,
        max_tokens=max(max_tokens or 0, FEWEST_TOKENS) if max_tokens else 0,
    )


def _image_size(gguf: GGUFFile, most: int, most_pixels: int) -> int:
    """0 is said of inputs of any size, which then have another limit."""
    key = "clip.vision.image_size"
    return 0 if most_pixels and gguf.get_int(key) == 0 else _size(gguf, key, most)


def _size(gguf: GGUFFile, key: str, most: int) -> int:
    value = gguf.get_int(key)
    if not 1 <= value <= most:
        raise ModelError(f"{gguf.path}: {key} is {value}, not 1 to {most}")
    return value


def get_ints(gguf: GGUFFile, key: str) -> tuple[int, ...]:
    """A key's numbers, none if it is missing."""
    return tuple(int(x) for x in np.asarray(gguf.metadata.get(key, ())))


def _floats(gguf: GGUFFile, key: str) -> tuple[float, ...]:
    values = tuple(float(x) for x in np.asarray(gguf.metadata.get(key, ())))
    if len(values) != 3:
        raise ModelError(f"{gguf.path}: {key} has {len(values)} values, not 3")
    return values
