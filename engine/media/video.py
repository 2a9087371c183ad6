"""Video files to frames, one at a time and within limits. PyAV decodes, where it is installed.

A file's header is not believed: what counts is what has been decoded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gguf_serve.engine.errors import MediaError
from gguf_serve.engine.media.ffmpeg import pyav
from gguf_serve.engine.media.limits import MediaLimits
from gguf_serve.engine.media.resize import Pixels

if TYPE_CHECKING:
    from types import ModuleType

# Playlists and the like are no containers: they would have FFmpeg open other files and hosts.
CONTAINERS = "matroska,webm,mov,mp4,avi,flv,mpegts,mpeg,ogg,gif"
OPTIONS = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
DECODED_IMAGES = 1000  # as many pixels as so many of the largest images may be decoded in all


def frames(data: bytes, limits: MediaLimits) -> Iterator[tuple[float, Pixels]]:
    """(seconds from the start, uint8 [height, width, 3]) of the first video stream, at most
    ``limits.video_fps`` a second (0: all); MediaError for anything that is no video."""
    av = pyav("a video")
    try:
        with av.open(io.BytesIO(data), mode="r", options=OPTIONS, **_lenient(av)) as container:
            if not container.streams.video:
                raise MediaError("the file has no video")
            stream = container.streams.video[0]
            _check_size(stream.width, stream.height, limits)
            # Its own: what PyAV keeps of one in each thread does not survive a fork.
            reformatter = av.video.reformatter.VideoReformatter()
            for seconds, frame in _chosen(container.decode(video=0), limits):
                yield seconds, reformatter.reformat(frame, format="rgb24").to_ndarray()
    except MediaError:
        raise
    except (av.error.FFmpegError, ValueError, OverflowError, MemoryError) as error:
        raise MediaError(f"the video cannot be decoded: {error}") from None


def _lenient(av: ModuleType) -> dict[str, str]:
    """What has PyAV before 19 pass over names in a file that are not in UTF-8."""
    major = int(av.__version__.partition(".")[0])
    return {"metadata_errors": "ignore"} if major < 19 else {}


def _chosen(decoded: Iterator[Any], limits: MediaLimits) -> Iterator[tuple[float, Any]]:
    n_pixels, n_chosen, start = 0, 0, None
    for frame in decoded:
        n_pixels += frame.width * frame.height
        _check_size(frame.width, frame.height, limits)
        if n_pixels > DECODED_IMAGES * limits.max_pixels:
            raise MediaError("the video has more pixels than a thousand of the largest images")
        time = float(frame.time or 0.0)
        start = time if start is None else start
        seconds = time - start
        if seconds > limits.max_seconds:
            raise MediaError(
                f"the video is longer than the limit of {limits.max_seconds:g} seconds"
            )
        if limits.video_fps and seconds * limits.video_fps < n_chosen - 1e-6:
            continue
        n_chosen = int(seconds * limits.video_fps + 1e-6) + 1
        yield seconds, frame


def _check_size(width: int, height: int, limits: MediaLimits) -> None:
    if width * height > limits.max_pixels:
        raise MediaError(
            f"the video has frames of {width} x {height} pixels, more than the limit of "
            f"{limits.max_pixels}"
        )
