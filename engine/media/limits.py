"""How large an image or a sound may be when it is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_serve.engine.option import COUNT, NATURAL, NUMBER, option

MEDIA = "Images and sounds"


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """What is larger is refused, images before they are decoded."""

    max_pixels: int = option(
        "--media-max-pixels", group=MEDIA, type=COUNT, default=64_000_000,
        help="most pixels of an image, of a WebP a third; larger ones are refused undecoded",
    )  # fmt: skip
    max_seconds: float = option(
        "--media-max-seconds", group=MEDIA, type=COUNT, default=1800,
        help="most seconds of a sound or a video",
    )  # fmt: skip
    max_frames: int = option(
        "--media-max-frames", group=MEDIA, type=COUNT, default=256,
        help="most frames of a video, after --video-fps; those together have at most as many "
        "pixels as an image",
    )  # fmt: skip
    video_fps: float = option(
        "--video-fps", group=MEDIA, env="VIDEO_FPS", type=NUMBER, default=4.0,
        help="frames of a second of a video that are taken; 0: all",
    )  # fmt: skip
    video_timestamp_interval: int = option(
        "--video-timestamp-interval", group=MEDIA, env="VIDEO_TIMESTAMP_INTERVAL", type=NATURAL,
        default=5000, help="milliseconds of a video between texts that say the time; 0: no such",
    )  # fmt: skip
