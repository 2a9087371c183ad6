"""Voices that requests may name: sound files, by their names without the ending."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gguf_serve.engine.errors import MediaError

DEFAULT = "default"  # the voice of requests that name none
ENDINGS = (".flac", ".mp3", ".ogg", ".opus", ".wav")


def read_voices(
    speaker_file: str | None, folder: str | None, max_bytes: int
) -> Mapping[str, bytes]:
    """The sounds of ``folder``, and ``speaker_file`` as the default. ValueError names the option
    and the file that is no sound, or longer than ``max_bytes``."""
    found: dict[str, bytes] = {}
    for path in [] if folder is None else sounds(Path(folder)):
        if path.stem in found:
            raise ValueError(f"--voices: {path} is another voice of the name {path.stem!r}")
        found[path.stem] = read_voice("--voices", path, max_bytes)
    if speaker_file is not None:
        if DEFAULT in found:
            raise ValueError(f"--tts-speaker-file: {folder} has a voice {DEFAULT!r}, too")
        found[DEFAULT] = read_voice("--tts-speaker-file", Path(speaker_file), max_bytes)
    return found


def sounds(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not found:
        raise ValueError(
            f"--voices: there is no sound in {folder}: expected files that end in one of "
            f"{', '.join(ENDINGS)}"
        )
    return found


def read_voice(option: str, path: Path, max_bytes: int) -> bytes:
    """A file that has been decoded once, so that no request finds that it cannot be."""
    from gguf_serve.engine.media.sound import decode_sound  # it takes 100 ms, mostly for nobody

    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ValueError(f"{option}: {path} has {size} bytes, more than {max_bytes}")
        data = path.read_bytes()
        decode_sound(data)
    except OSError as error:
        raise ValueError(f"{option}: cannot read {path}: {error.strerror or error}") from None
    except MediaError as error:
        raise ValueError(f"{option}: {path}: {error}") from None
    return data
