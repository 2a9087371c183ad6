"""Frames of videos: which are taken, how large they may be, what a file must not do."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from images_and_sounds import AUDIO, N_TOKENS, VISION, video
from msgspec.structs import replace

from gguf_serve.engine.encoders.reader import MediaReader
from gguf_serve.engine.errors import MediaError
from gguf_serve.engine.media.limits import MediaLimits
from gguf_serve.engine.media.piece import Tile, in_pairs
from gguf_serve.engine.media.video import frames

# A thread that has decoded lives on; the copy's only thread clears away what that one has.
FORKED = """
import os, sys, threading
from gguf_serve.engine.media.limits import MediaLimits
from gguf_serve.engine.media.video import frames

def decode():
    print(len(list(frames(sys.stdin.buffer.read(), MediaLimits(video_fps=0)))), flush=True)
    decoded.set()
    threading.Event().wait()

decoded = threading.Event()
threading.Thread(target=decode, daemon=True).start()
decoded.wait()
if child := os.fork():
    os.waitpid(child, 0)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("fps", "expected"), [(4, range(0, 24, 3)), (0, range(24)), (30, range(24)), (1, (0, 12))]
)
def test_so_many_frames_a_second(fps: float, expected: range) -> None:
    found = list(frames(video(), MediaLimits(video_fps=fps)))
    assert [pixels[0, 0, 0] // 8 for _, pixels in found] == list(expected)
    assert [round(12 * seconds) for seconds, _ in found] == list(expected)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_after_decoding() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], input=video(), timeout=120, check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.stdout == b"24\n", done.stderr


def test_frames_are_images_with_the_time_in_between() -> None:
    reader = MediaReader(VISION, None, n_embd=64, limits=MediaLimits(video_timestamp_interval=1000))
    medium = reader.video(video())
    tiles = [piece for piece in medium.pieces if isinstance(piece, Tile)]
    assert len(tiles) == 8
    assert medium.n_tokens == 8 * N_TOKENS
    texts = "".join("*" if isinstance(piece, Tile) else str(piece) for piece in medium.pieces)
    marked = "<|vision_start|>*<|vision_end|>"
    assert texts == f"Video:{marked}[0m0.00s]{4 * marked}[0m1.00s]{3 * marked}"


def test_frames_in_pairs() -> None:
    """Of a model whose kernel is for two: what is left over stays a frame, and each pair has the
    time of its first one."""
    vision = replace(VISION, two_frames=True)
    limits = MediaLimits(video_timestamp_interval=1000)
    medium = MediaReader(vision, None, n_embd=64, limits=limits).video(video(15))
    tiles = [piece for piece in medium.pieces if isinstance(piece, Tile)]
    assert [tile.pixels.shape[2] for tile in tiles] == [6, 6, 3]
    seen = [
        round(tile.pixels[..., i].mean() / 8)
        for tile in tiles
        for i in range(0, tile.pixels.shape[2], 3)
    ]
    assert seen == [0, 3, 6, 9, 12]
    assert medium.n_tokens == 3 * N_TOKENS
    texts = "".join("*" if isinstance(piece, Tile) else str(piece) for piece in medium.pieces)
    marked = "<|vision_start|>*<|vision_end|>"
    assert texts == f"Video:{marked}[0m0.00s]{2 * marked}[0m1.00s]"


def test_frames_of_other_sizes_are_no_pair() -> None:
    small, large = (Tile(np.zeros((side, 4, 3), np.uint8)) for side in (4, 8))
    assert in_pairs(["<", small, ">"], ["<", large, ">"]) is None
    assert in_pairs(["<", small, ">"], ["<", small, small, ">"]) is None
    pair = in_pairs(["<", small, ">"], ["<", small, ">"])
    assert pair is not None
    assert [str(piece) for piece in (pair[0], pair[2])] == ["<", ">"]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (MediaLimits(max_pixels=3000), r"frames of 56 x 56 pixels, more than the limit of 3000"),
        (MediaLimits(max_seconds=1), "longer than the limit of 1 seconds"),
        (MediaLimits(max_frames=7), r"8 frames with 25088 pixels .* more than 7 or"),
        (MediaLimits(max_pixels=7 * 3136), r"8 frames .* --video-fps is 4"),
    ],
)
def test_limits(limits: MediaLimits, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        MediaReader(VISION, None, n_embd=64, limits=limits).video(video())


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    "data",
    [b"", b"no video", video()[:200], PLAYLIST, b"ffconcat version 1.0\nfile /etc/passwd\n"],
    ids=["empty", "text", "cut", "playlist", "concat"],
)
def test_what_is_no_video(data: bytes) -> None:
    reader = MediaReader(VISION, None, n_embd=64)
    with pytest.raises(MediaError, match=r"cannot be decoded|no video|no frames"):
        reader.video(data)


def test_a_model_for_sounds_takes_no_videos() -> None:
    with pytest.raises(MediaError, match="takes no videos"):
        MediaReader(None, AUDIO, n_embd=64).video(video(1))


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r"pip install 'gguf-serve\[video\]'"):
        next(frames(b"", MediaLimits()))
