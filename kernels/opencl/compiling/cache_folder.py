"""Where a user's caches lie, if the user has a home."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def cache_folder() -> Path | None:
    """A folder that may not exist yet; None for a user without a home, as in containers."""
    try:
        folder = platformdirs.user_cache_path("gguf-serve")
    except RuntimeError:  # since platformdirs 4.6; before, the folder began with "~"
        return None
    return folder if folder.is_absolute() else None


def features_path() -> Path | None:
    """Where it is kept what the CPU's compiler can do (features.py), once a start has found out;
    None as above."""
    folder = cache_folder()
    return None if folder is None else folder / "features.json"
