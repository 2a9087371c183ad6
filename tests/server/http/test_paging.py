"""Lists: how many, in which order, behind which."""

from __future__ import annotations

import pytest

from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.paging import page


def test_pages() -> None:
    items = [{"id": f"i{n}"} for n in range(30)]
    first = page(items, {})
    assert [item["id"] for item in first["data"]] == [f"i{n}" for n in range(29, 9, -1)]
    assert (first["first_id"], first["last_id"], first["has_more"]) == ("i29", "i10", True)
    rest = page(items, {"after": "i10", "limit": "100"})
    assert ([item["id"] for item in rest["data"]][-1], rest["has_more"]) == ("i0", False)
    assert page(items, {"order": "asc", "limit": "1"})["last_id"] == "i0"
    assert page((), {})["first_id"] is None
    assert len(page(items, {}, default=25)["data"]) == 25
    for query in ({"limit": "0"}, {"limit": "101"}, {"order": "up"}, {"after": "x"}):
        with pytest.raises(ApiError, match=next(iter(query))):
            page(items, query)
