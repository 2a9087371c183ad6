"""The reference data of ../shared/conformance/vision: files, images, what llama.cpp computes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
IMAGES = (
    "adapter", "cogvlm", "deepseek4v", "deepseekocr", "deepseekocr2", "dots3note", "dots_ocr",
    "exaone4_5", "gemma3", "gemma3nv", "gemma4-e2b", "gemma4u", "gemma4v", "gemma4v-gemma4",
    "glm4v", "glm5v", "granite-vision", "granite4_vision", "hunyuanvl", "idefics3", "internvl",
    "janus_pro", "kimik25", "kimivl", "ldp", "ldpv2", "lfm2", "lfm2-tiles", "lightonocr",
    "ling3vl", "llama4", "llava-yi", "llava15", "llava15-swapped", "llava16", "mimovl",
    "minicpmv2.5", "minicpmv2.6", "minicpmv4.6", "minimax_m3", "mistral3", "muse-glimmer",
    "nemotron_v2_vl", "paddleocr", "phi4", "pixtral", "qwen2.5o", "qwen2.5vl", "qwen2vl",
    "qwen2vl-f16", "qwen3vl", "step3vl", "yasa2", "youtuvl",
)  # fmt: skip
# dots3note's with a patch kernel of halves, as files have it and llama.cpp rounds it to: one patch
# is so near a tie between two experts that it goes to the other without.
OWN_SPECS = Path(__file__).parents[2] / "data" / "vision"
# Of sounds, which one each has.
SOUNDS = {
    "dots3note": "sound", "gemma4-e2b": "short", "gemma4a": "sound", "gemma4u": "short",
    "glma": "sound", "granite_speech": "sound", "granite_speech-plus": "sound", "lfm2a": "sound",
    "meralion": "sound", "mimo_audio": "sound24", "musicflamingo": "sound", "parakeet": "sound",
    "pockettts_spkenc": "sound24", "qwen3tts_spkenc": "sound24",
    "qwen2.5o": "sound", "qwen2a": "sound", "qwen3a": "sound", "ultravox": "sound",
    "voxtral": "sound",
}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """What llama.cpp makes of the test images with one projector file."""

    folder: Path
    name: str

    @cached_property
    def arrays(self) -> Any:
        return np.load(self.folder / "embeddings" / f"{self.name}.npz")

    @cached_property
    def meta(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(str(self.arrays["meta"]))
        return found

    @property
    def spec(self) -> str:
        """The path of the projector file's spec, for the fixture conformance_model."""
        file = f"{self.meta.get('spec', self.name)}.json"
        own = OWN_SPECS / file
        return str(own if own.is_file() else self.folder / "specs" / file)

    @property
    def token_limits(self) -> tuple[int | None, int | None]:
        return self.meta.get("image_min_tokens"), self.meta.get("image_max_tokens")

    @property
    def media(self) -> dict[str, Any]:
        found: dict[str, Any] = self.meta["media"]
        return found

    @property
    def images(self) -> list[str]:
        """The keys of images."""
        return [key for key in self.media if key not in SOUNDS.values()]

    def pixels(self, key: str, tile: int) -> Pixels | None:
        """The encoder's input, where the data has it."""
        other = self.meta.get("pixels_in")
        arrays = Reference(self.folder, other).arrays if other else self.arrays
        name = f"pixels.{key}.{tile}"
        return arrays[name] if name in arrays.files else None

    def image(self, key: str) -> Pixels:
        """A test image; the JPEG as llama.cpp decodes it."""
        if key == "square.jpg":
            return np.load(self.folder / "images" / "decoded.npz")[key]
        return np.asarray(Image.open(self.folder / "images" / f"{key}.png").convert("RGB"))

    def texts(self, key: str) -> Iterator[str]:
        for chunk in self.media[key]["chunks"]:
            if "tokens" in chunk:
                yield "".join(chunk["pieces"])

    def start(self, key: str) -> int:
        """The tokens before the medium, as llama.cpp counts them: it adds the first one later."""
        return len(self.media[key]["chunks"][0]["tokens"]) - 1

    def inputs(self, key: str) -> list[dict[str, Any]]:
        return [chunk for chunk in self.media[key]["chunks"] if "tokens" not in chunk]


def nmse(found: npt.NDArray[np.floating], reference: npt.NDArray[np.floating]) -> float:
    assert found.shape == reference.shape
    difference = found.astype(np.float64) - reference
    return float((difference**2).sum() / (reference.astype(np.float64) ** 2).sum())
