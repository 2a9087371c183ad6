"""Not a test: a child process that evaluates what it is asked, for test_child.py."""

import os  # noqa: F401  (messages use it)
import time  # noqa: F401
from collections.abc import Callable

from gguf_serve.engine.child import serve


def set_up(setup: object) -> tuple[Callable[[str], bytes], bytes]:
    def evaluate(message: str) -> bytes:
        return str(eval(message.strip(), globals(), {"x": setup})).encode()

    return evaluate, f"set up with {setup}".encode()


if __name__ == "__main__":
    serve(set_up)
