"""Folders for caches, of users with and without a home."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from gguf_serve.kernels.opencl.compiling.cache_folder import cache_folder
from gguf_serve.kernels.opencl.compiling.program_cache import default_folder


def test_it_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gguf-serve"
    assert default_folder() == tmp_path / "gguf-serve" / "programs"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError, None])
def test_a_user_without_a_home(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    def found(name: str) -> Path:
        if error:
            raise error
        return Path("~/.cache") / name

    monkeypatch.setattr(platformdirs, "user_cache_path", found)
    assert cache_folder() is None
    assert default_folder() is None
