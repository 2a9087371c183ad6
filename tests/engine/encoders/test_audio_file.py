"""Encoders of sounds that are not known are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
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


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rvq.codebook_size", [32, 32, 16], r"4 books of 32 codes, and .* is \[32, 32, 16\]"),
        ("rvq.codebook_size", [33, 32, 16, 8], r"4 books of 32 codes, and .* is \[33, 32, 16, 8\]"),
        ("wa_pattern_mode", [0, -1], "has 2 values for 4 layers"),
    ],
)
def test_lists_of_other_lengths(
    vision_folder: Path, conformance_model: Callable[[str], Path], key: str, value: list[int],
    message: str,
) -> None:  # fmt: skip
    path = conformance_model(str(vision_folder / "specs" / "mimo_audio.json"))
    with open_gguf(path) as gguf:
        other = gguf.with_metadata({**gguf.metadata, f"clip.audio.{key}": np.array(value)})
        with pytest.raises(ModelError, match=message):
            read_audio_file(other)
