"""Encoders of sounds that are not known are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_serve.engine.encoders.audio_file import read_audio_file
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import open_gguf


def test_what_is_not_known(vision_folder: Path, conformance_model: Callable[[str], Path]) -> None:
    path = conformance_model(str(vision_folder / "specs" / "pockettts_spkenc.json"))
    with open_gguf(path) as gguf:
        other = {**gguf.metadata, "clip.audio.projector_type": "encodec"}
        with pytest.raises(ModelError, match=r"'encodec' is not supported; known: .*gemma4a"):
            read_audio_file(gguf.with_metadata(other))
