"""Small images, sounds and videos, and projectors that take them."""

from __future__ import annotations

import base64
import io

import av
import numpy as np
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


def video(n: int = 24, fps: int = 12, size: int = 56) -> bytes:
    """Matroska, frames whose grey grows by 8 each."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="matroska") as container:
        track = container.add_stream("ffv1", rate=fps)
        track.width = track.height = size
        track.pix_fmt = "bgr0"
        for i in range(n):
            pixels = np.full((size, size, 3), 8 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(track.encode(frame.reformat(format="bgr0")))
        container.mux(track.encode())
    return stream.getvalue()
