"""Drives the generators that read a growing text."""

from gguf_serve.engine.chat.scanner import Parse, Scanner


def drive(scanner: Scanner, reader: Parse[object], *pieces: str) -> object:
    """Feed the pieces one by one, then end; the reader's result."""
    try:
        next(reader)
        for piece in pieces:
            scanner.feed(piece)
            next(reader)
        scanner.ended = True
        next(reader)
    except StopIteration as done:
        return done.value
    raise AssertionError("the reader waits after the end")
