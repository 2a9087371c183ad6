"""Encoders of sounds that are not there are refused in words that say what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_serve.engine.encoders.audio_file import MISSING, read_audio_file
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import open_gguf


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("qwen3tts_spkenc", "qwen3tts_spkenc"),
        ("pockettts_spkenc", "pockettts_spkenc"),
    ],
)
def test_what_is_missing_is_said(
    vision_folder: Path, conformance_model: Callable[[str], Path], name: str, kind: str
) -> None:
    path = conformance_model(str(vision_folder / "specs" / f"{name}.json"))
    with open_gguf(path) as gguf, pytest.raises(ModelError, match=MISSING[kind]):
        read_audio_file(gguf)
