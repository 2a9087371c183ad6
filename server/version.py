"""The name and version that the server goes by."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

NAME = "gguf-serve"
try:
    VERSION = version(NAME)
except PackageNotFoundError:  # a checkout that was not installed
    VERSION = "0+unknown"
# As llama-server writes it, a "b" and a number first: its clients look for these.
BUILD_INFO = f"b{int(''.join(filter(str.isdecimal, VERSION)) or 0)}-{NAME}-{VERSION}"
