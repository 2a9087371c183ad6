"""Memory for bodies: in the order of arrival, and never more than there is."""

from __future__ import annotations

import asyncio

import pytest

from gguf_serve.server.http.room import Lease, Room


async def settled(*tasks: asyncio.Task[None]) -> list[bool]:
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


def test_first_come_first_served() -> None:
    async def main() -> None:
        room = Room(10)
        await room.take(6)
        large, small = (asyncio.create_task(room.take(n)) for n in (5, 1))
        assert await settled(large, small) == [False, False]  # a small one does not overtake
        room.give(6)
        assert await settled(large, small) == [True, True]
        assert room.free == 4

    asyncio.run(main())


@pytest.mark.parametrize("given_back", [False, True])
def test_who_gives_up_has_nothing(given_back: bool) -> None:
    """Also one that is cancelled when it has just been served."""

    async def main() -> None:
        room = Room(10)
        await room.take(10)
        first, second = (asyncio.create_task(room.take(10)) for _ in range(2))
        await settled()
        if given_back:
            room.give(10)
        first.cancel()
        assert await settled(first, second) == [True, given_back]
        assert first.cancelled()
        if not given_back:
            room.give(10)
            assert await settled(second) == [True]
        room.give(10)
        assert room.free == 10

    asyncio.run(main())


def test_leases() -> None:
    async def main() -> None:
        room = Room(10)
        lease, other = Lease(room), Lease(room)
        await lease.take(7, 1)
        with pytest.raises(TimeoutError):
            await other.take(1000, 0.01)  # as all of the room
        other.give_back()
        lease.give_back()
        lease.give_back()
        await other.take(1000, 1)
        assert room.free == 0

    asyncio.run(main())
