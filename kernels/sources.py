"""Where the OpenCL sources are, which is also where they look for what they include."""

from __future__ import annotations

from pathlib import Path

SOURCES = Path(__file__).resolve().parent
