"""Messages to the engine's thread: who may still post one, and what the others are told."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from gguf_serve.engine.errors import EngineStoppedError
from gguf_serve.engine.serving.mailbox import Cancelled, Mailbox, SlotTask, Submitted

STREAM: Any = object()


def test_messages_come_in_their_order() -> None:
    mailbox = Mailbox()
    messages = [
        Submitted(STREAM),
        SlotTask(lambda: None, slot=0),
        Submitted(STREAM),
        Cancelled(STREAM),
    ]
    for message in messages:
        mailbox.post(message)
    assert mailbox
    assert mailbox.n_submitted == 2
    assert mailbox.take() == messages
    assert not mailbox
    assert mailbox.n_submitted == 0


def test_a_message_wakes_who_waits() -> None:
    mailbox = Mailbox()
    poster = threading.Thread(target=mailbox.post, args=[Submitted(STREAM)])
    with mailbox.wake:
        poster.start()
        assert mailbox.wake.wait_for(lambda: bool(mailbox), 120)
    poster.join()


@pytest.mark.parametrize(
    ("fault", "told"), [("", "the server is shutting down"), ("the device is gone", "is gone")]
)
def test_after_the_end(fault: str, told: str) -> None:
    """Nobody submits any more; to cancel what has ended is no error."""
    mailbox = Mailbox()
    mailbox.stop(fault)
    mailbox.stop()  # the first fault stays
    assert mailbox
    with pytest.raises(EngineStoppedError, match=told):
        mailbox.post(Submitted(STREAM))
    mailbox.post(Cancelled(STREAM), refuse=False)
    assert mailbox.take() == [Cancelled(STREAM)]


def test_a_slot_task_tells_what_comes_of_it() -> None:
    def fails() -> None:
        raise EngineStoppedError("no")

    done, failed, left = (
        SlotTask(lambda: 5, slot=0),
        SlotTask(fails, slot=0),
        SlotTask(lambda: 5, slot=0),
    )
    done.run()
    failed.run()
    left.fail(EngineStoppedError("too late"))
    assert done.future.result() == 5
    for task, told in ((failed, "no"), (left, "too late")):
        with pytest.raises(EngineStoppedError, match=told):
            task.future.result()
    cancelled = SlotTask(fails, slot=0)
    cancelled.future.cancel()
    cancelled.run()  # does nothing
