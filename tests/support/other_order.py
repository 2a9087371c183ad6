"""A pytest plugin that runs tests in another order, to find those that depend on one before them.

    pytest -p other_order                  (reversed)
    ORDER_SEED=7 pytest -p other_order     (shuffled: functions, and the cases of each)

Which process runs a test, and after which, is decided by who is done first (``--dist worksteal``),
so a test that needs another's leavings fails some day.
"""

from __future__ import annotations

import os
import random

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seed = os.environ.get("ORDER_SEED")
    if seed is None:
        items.reverse()
        return
    rng, functions = random.Random(seed), dict[str, list[pytest.Item]]()
    for item in items:
        functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    groups = list(functions.values())
    rng.shuffle(groups)
    for group in groups:
        rng.shuffle(group)
    items[:] = [item for group in groups for item in group]
