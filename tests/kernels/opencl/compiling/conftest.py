from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def compilers_go_on() -> None:
    """Not here, where it is tested when they end."""
