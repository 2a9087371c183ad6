"""Where the OpenCL sources are. They include each other by their paths from here."""

from __future__ import annotations

from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1]

# Of every build. The kernels are OpenCL C 1.2, in which a pointer that names no address space is
# private. Drivers take the newest 1.x unless they are told, but PoCL 6 takes 3.0, where it is
# generic, and does not go with private arrays.
OPTIONS = ("-cl-std=CL1.2", f"-I{SOURCES}")
