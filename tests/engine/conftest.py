"""Fixtures of the engine's tests: ``device`` and ``programs``, see opencl_devices.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from opencl_devices import device, programs

__all__ = ["device", "programs"]


@pytest.fixture(scope="session")
def vision_folder(shared: Path) -> Path:
    """Reference data of projectors, see vision_data.py."""
    folder = shared / "conformance" / "vision"
    if not folder.is_dir():
        pytest.skip("there is no conformance/vision in ../shared")
    return folder
