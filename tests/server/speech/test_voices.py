"""Voices from files that options name, and what is wrong with such files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from gguf_serve.server.speech.voices import read_voices

MOST = 2**20


def sound(path: Path) -> Path:
    soundfile.write(path, 0.1 * np.ones(8000, np.float32), 16000)
    return path


def test_a_folder_and_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "voices"
    folder.mkdir()
    ada, bob = sound(folder / "ada.wav"), sound(folder / "bob the second.FLAC")
    (folder / "README.txt").write_text("no sound")
    speaker = sound(tmp_path / "me.wav")
    found = read_voices(str(speaker), str(folder), MOST)
    assert found == {
        "ada": ada.read_bytes(),
        "bob the second": bob.read_bytes(),
        "default": speaker.read_bytes(),
    }
    assert read_voices(None, None, MOST) == {}


def problem(speaker_file: Path | None, folder: Path | None, most: int = MOST) -> str:
    given = [None if path is None else str(path) for path in (speaker_file, folder)]
    with pytest.raises(ValueError, match="--") as caught:
        read_voices(given[0], given[1], most)
    return str(caught.value)


def test_files_that_are_no_voices(tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    missing = tmp_path / "missing.wav"
    assert problem(broken, None).startswith(
        f"--tts-speaker-file: {broken}: the sound cannot be decoded: "
    )
    assert problem(None, tmp_path).startswith(f"--voices: {broken}: the sound cannot be decoded: ")
    assert problem(missing, None) == (
        f"--tts-speaker-file: cannot read {missing}: No such file or directory"
    )
    sound(broken)
    size = broken.stat().st_size
    assert problem(broken, None, size - 1) == (
        f"--tts-speaker-file: {broken} has {size} bytes, more than {size - 1}"
    )


def test_names_that_are_taken(tmp_path: Path) -> None:
    assert problem(None, tmp_path) == (
        f"--voices: there is no sound in {tmp_path}: expected files that end in one of .flac, "
        ".mp3, .ogg, .opus, .wav"
    )
    default = sound(tmp_path / "default.wav")
    assert problem(default, tmp_path) == (
        f"--tts-speaker-file: {tmp_path} has a voice 'default', too"
    )
    sound(tmp_path / "default.flac")
    assert problem(None, tmp_path) == (
        f"--voices: {default} is another voice of the name 'default'"
    )
