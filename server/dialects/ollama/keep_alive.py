"""``keep_alive``: how long Ollama keeps a model after a request. Here it sleeps then."""

from __future__ import annotations

import math
import re

from gguf_serve.server.errors import invalid, shown
from gguf_serve.server.requests.service import Service

UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
PART = re.compile(r"(\d{1,9}(?:\.\d{0,9})?)(ns|us|µs|ms|s|m|h)")
DURATION = re.compile(rf"[+-]?(?:0|(?:{PART.pattern}){{1,8}})")  # as Go writes them
FOREVER = -1.0
MOST = 1e9  # seconds


def keep_alive(service: Service, asked: str | float | None) -> None:
    """Have the model stay for so long from the end of this request on; None: as is usual."""
    if asked is not None:
        service.keep_alive = seconds(asked)


def seconds(asked: str | float) -> float:
    """Of a number of seconds, or a duration such as 5m or 1h30m; below 0: for ever."""
    if isinstance(asked, str):
        text = asked.strip()
        if not DURATION.fullmatch(text):
            raise invalid(
                f"Field 'keep_alive': expected seconds or a duration such as 5m, got {shown(asked)}"
            )
        found = sum(float(number) * UNITS[unit] for number, unit in PART.findall(text))
        found = -1.0 if text.startswith("-") and found else found
    else:
        found = float(asked)
    return FOREVER if found < 0 or not math.isfinite(found) else min(found, MOST)
