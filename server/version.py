"""The name and version that the server goes by."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

NAME = "gguf-serve"
try:
    VERSION = version(NAME)
except PackageNotFoundError:  # a checkout that was not installed
    VERSION = "0+unknown"
BUILD_INFO = f"{NAME}-{VERSION}"
