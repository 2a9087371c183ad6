"""``encrypted_content``: opaque, since some clients send back nothing else. It is no secret."""

from __future__ import annotations

import base64
import binascii
from typing import Any


def sealed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def unsealed(content: Any) -> str:
    """Nothing of what another server has sealed."""
    try:
        return base64.b64decode(content, validate=True).decode() if content else ""
    except (TypeError, ValueError, binascii.Error):
        return ""
