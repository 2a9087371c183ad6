"""Lists of OpenAI's API: some of what there is, by a request's query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gguf_serve.server.errors import invalid, shown


def page(
    items: Sequence[Mapping[str, Any]],
    query: Mapping[str, str],
    *,
    what: str = "item",
    most: int = 100,
    default: int = 20,
) -> dict[str, Any]:
    """Of items in the order of their age: ``limit``, ``order`` (desc), ``after`` (an id)."""
    limit, order = query.get("limit", str(default)), query.get("order", "desc")
    if not (limit.isdecimal() and 1 <= int(limit[:6]) <= most):
        raise invalid(f"Parameter 'limit': expected a number from 1 to {most}, got {shown(limit)}")
    if order not in ("asc", "desc"):
        raise invalid(f"Parameter 'order': expected asc or desc, got {shown(order)}")
    found = list(items if order == "asc" else reversed(items))
    if "after" in query:
        ids = [item["id"] for item in found]
        if query["after"] not in ids:
            raise invalid(f"Parameter 'after': there is no {what} {shown(query['after'])}")
        found = found[ids.index(query["after"]) + 1 :]
    data = found[: int(limit)]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(data) < len(found),
    }
