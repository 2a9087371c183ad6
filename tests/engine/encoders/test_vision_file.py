"""Sizes that no projector has are refused before anything is made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gguf_serve.engine.encoders.vision_file import read_vision_file
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import open_gguf


@pytest.mark.parametrize("key", ["clip.vision.image_size", "clip.vision.patch_size"])
@pytest.mark.parametrize("value", [-1, 0, 10**6, 2**63])
def test_sizes(
    vision_folder: Path, conformance_model: Callable[[str], Path], key: str, value: int
) -> None:
    path = conformance_model(str(vision_folder / "specs" / "lightonocr.json"))
    with open_gguf(path) as gguf:
        gguf.metadata = {**gguf.metadata, key: value}
        with pytest.raises(ModelError, match=f"{key} is {value}, not 1 to"):
            read_vision_file(gguf)
