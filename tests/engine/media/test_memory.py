"""What small files may cost: the most memory that a process with nothing else takes for them."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

MEASURE = """
import resource, sys
from gguf_serve.engine.encoders.audio import spectrograms
from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.errors import MediaError
from gguf_serve.engine.media.image import decode_image
from gguf_serve.engine.media.sound import decode_sound
decode = decode_image if sys.argv[1] == "image" else decode_sound
spec = AudioFile("qwen3a", 40, 2, 2, 1e-5, 128, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = "decoded"
try:
    found = decode(open(sys.argv[2], "rb").read())
    if sys.argv[1] == "sound":
        spectrograms(spec, found)
except MediaError as error:
    result = str(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
print(result)
"""


def image(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def flac(rate: int, seconds: int) -> bytes:
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate, 1, format="FLAC") as file:
        for _ in range(seconds):
            file.write(np.zeros(rate, np.int16))
    return stream.getvalue()


def wav_of_hours() -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.full(16000, 0.1), 16000, format="WAV")
    data = bytearray(stream.getvalue())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = (2**31 - 64).to_bytes(4, "little")
    return bytes(data)


def animation() -> bytes:
    frames = [Image.new("L", (64, 64), i % 256) for i in range(3000)]
    return image(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("kind", "make", "most", "result"),
    [
        ("image", lambda: image(Image.new("RGBA", (8000, 8000))), 1300, "decoded"),
        ("image", lambda: image(Image.new("1", (1, 60000))), 10, "a side may be 200 times"),
        ("image", animation, 10, "decoded"),
        ("sound", wav_of_hours, 20, "decoded"),
        ("sound", lambda: flac(384000, 120), 150, "decoded"),
        ("sound", lambda: flac(16000, 1800), 900, "decoded"),
        ("sound", lambda: flac(16000, 1801), 300, "longer than the limit of 1800 seconds"),
        ("sound", lambda: flac(655350, 1), 10, "not one of 1000 to 384000"),
    ],
)
def test_memory(
    tmp_path: Path, kind: str, make: Callable[[], bytes], most: int, result: str
) -> None:
    """``most``: MiB."""
    path = tmp_path / "file"
    path.write_bytes(make())
    assert path.stat().st_size < 4 << 20
    command = [sys.executable, "-c", MEASURE, kind, str(path)]
    megabytes, found = subprocess.check_output(command, text=True).splitlines()
    assert result in found
    assert int(megabytes) < most
