"""An image encoder: a projector file on a device, from pixels to embeddings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.encoders.families import (
    clip,
    convnext,
    convolved,
    granite,
    minicpm,
    mobilenet,
    ocr,
    pixtral,
    qwen,
    siglip,
)
from gguf_serve.engine.encoders.geometry import Floats, Grid
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.patches import Encoding
from gguf_serve.engine.encoders.recordings import Recordings
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.media.piece import Tile
from gguf_serve.engine.media.resize import Pixels
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

Build = Callable[[Graph, VisionFile, Grid, bool], Encoding]
BUILD: dict[str, Build] = {
    "mlp": clip.llava,
    "ldp": clip.ldp,
    "ldpv2": clip.ldpv2,
    "internvl": clip.internvl,
    "cogvlm": clip.cogvlm,
    "llama4": clip.llama4,
    "nemotron_v2_vl": clip.nemotron,
    "adapter": siglip.glm_edge,
    "phi4": siglip.phi4,
    "janus_pro": siglip.janus,
    "gemma3": siglip.gemma3,
    "gemma3nv": mobilenet.gemma3n,
    "gemma4v": siglip.gemma4,
    "gemma4uv": siglip.gemma4_unified,
    "idefics3": siglip.idefics3,
    "lfm2": siglip.lfm2,
    "qwen2vl_merger": qwen.qwen2vl,
    "qwen2.5vl_merger": qwen.qwen25vl,
    "qwen3vl_merger": qwen.qwen3vl,
    "ling3vl": qwen.ling3vl,
    "exaone4_5": qwen.qwen25vl,
    "youtuvl": qwen.youtuvl,
    "minimax_m3": qwen.minimax,
    "glm5v": qwen.glm4v,
    "glm4v": qwen.glm4v,
    "dots_ocr": qwen.dots_ocr,
    "paddleocr": qwen.paddleocr,
    "pixtral": pixtral.pixtral,
    "lightonocr": pixtral.pixtral,
    "muse-glimmer": pixtral.muse_glimmer,
    "kimik25": pixtral.kimivl,
    "kimivl": pixtral.kimivl,
    "step3vl": convolved.step3,
    "hunyuanvl": convolved.hunyuan,
    "deepseek4v": convolved.deepseek4,
    "yasa2": convnext.yasa2,
    "deepseekocr": ocr.deepseek_ocr,
    "deepseekocr2": ocr.deepseek_ocr2,
    "mimovl": qwen.mimovl,
    "dots3note_v": qwen.dots_ocr,
    "resampler": minicpm.resampler,
    "minicpmv4_6": minicpm.minicpmv46,
}
LAID_OUT: dict[str, Callable[[tuple[int, ...], Graph, VisionFile, Grid, bool], Encoding]] = {
    "granite4_vision": granite.granite4,
}


class _Recorded(Struct, frozen=True):
    graph: Graph
    encoding: Encoding


class VisionEncoder:
    """Encodes one tile at a time. Lives in the engine's thread."""

    def __init__(
        self,
        spec: VisionFile,
        weights: EncoderWeights,
        device: Device,
        programs: Programs,
        *,
        like_llama_cpp: bool = False,
    ) -> None:
        self.spec = spec
        self._weights, self._device, self._programs = weights, device, programs
        self._like_llama_cpp = like_llama_cpp
        self._recordings = Recordings(self._record)  # by grid of patches, layout, frames

    def warm_up(self) -> int:
        """Record an input of the usual size, which loads the weights; the output's width."""
        return self._recordings.of((*self.spec.usual, 1)).encoding.out.width

    def encode(self, tile: Tile, n_before: int = 0) -> Floats:
        """Embeddings float32 [tokens, width] of a tile, after so many that only align it."""
        patch, pixels = self.spec.patch, tile.pixels
        grid = pixels.shape[0] // patch, pixels.shape[1] // patch
        frames = [pixels[..., i : i + 3] for i in range(0, pixels.shape[2], 3)]
        recorded = self._recordings.of((grid, tile.layout, len(frames)))
        encoding = recorded.encoding
        rows = np.concatenate(
            [encoding.rows(self._normalized(frame), patch) for frame in frames], axis=1
        )
        order = encoding.order
        found = recorded.graph.run([rows if order is None else rows[order]])
        found = encoding.finish(found)
        if n_before and encoding.before is not None:
            found = np.concatenate([np.tile(encoding.before, (n_before, 1)), found])
        return found

    def _normalized(self, pixels: Pixels | Floats) -> Floats:
        mean, std = (np.array(x, np.float32) for x in (self.spec.mean, self.spec.std))
        scaled = pixels.astype(np.float32) / np.float32(255)
        if self.spec.kind == "gemma4v":
            return scaled * np.float32(2) - np.float32(1)
        result: Floats = (scaled - mean) / std
        return result

    def _record(self, size: tuple[Grid, tuple[int, ...], int]) -> _Recorded:
        graph = Graph(self._weights, self._device, self._programs)
        grid, layout, n_frames = size
        if layout:
            build: Build = partial(LAID_OUT[self.spec.kind], layout)
        else:
            build = BUILD[self.spec.kind]
        spec = replace(self.spec, n_frames=n_frames)
        encoding = build(graph, spec, grid, self._like_llama_cpp)
        graph.finish(encoding.out)
        return _Recorded(graph, encoding)
