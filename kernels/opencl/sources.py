"""Where the OpenCL sources are. They include each other by their paths from here."""

from __future__ import annotations

from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1]
