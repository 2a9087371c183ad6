from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from browsing import chromium  # here: the other tests of the page need no playwright

    with chromium() as browser:
        yield browser
