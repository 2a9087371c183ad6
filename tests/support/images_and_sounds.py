"""Small images and sounds, and projectors that take them."""

from __future__ import annotations

import base64
import io

import soundfile
from PIL import Image

from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.media.piece import ImageLimits

VISION = VisionFile(
    "qwen2vl_merger", 64, 2, 4, 1e-6, "gelu", 2, (0.5,) * 3, (0.5,) * 3,
    ImageLimits(56, 14, 2, 4 * 784, 64 * 784),
)  # fmt: skip
AUDIO = AudioFile("qwen3a", 40, 2, 2, 1e-5, 128, 1)
N_TOKENS = 4  # of an image of 56 by 56 pixels


def png(color: str = "red", size: int = 56) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), color).save(stream, "PNG")
    return stream.getvalue()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def wav() -> str:
    stream = io.BytesIO()
    soundfile.write(stream, [0.1, -0.1] * 8000, 16000, format="WAV")
    return base64.b64encode(stream.getvalue()).decode()
