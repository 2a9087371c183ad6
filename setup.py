"""Ends an installation by an older Python at once; all else is in pyproject.toml.

Pips before 23.1 look at ``requires-python`` of a folder only after they have tried versions of
every dependency, for minutes.
"""

import sys

from setuptools import setup

if sys.version_info < (3, 11):  # noqa: UP036
    found = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"gguf-serve needs Python 3.11 or later; {sys.executable} is {found}")
setup()
