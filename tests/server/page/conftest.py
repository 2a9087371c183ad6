from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from browsing import chromium  # here: the other tests of the page need no playwright

    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Any, serve: Any, engine: Any) -> Iterator[Any]:
    """The page of a server with the test's engine, in a window that is closed afterwards."""
    from browsing import Opened

    opened: list[Opened] = []

    def run(**how: Any) -> Opened:
        keys = how.pop("api_keys", ())
        opened.append(Opened(browser, serve(engine, api_keys=keys), **how))
        return opened[-1]

    yield run
    for each in opened:
        each.context.close()
