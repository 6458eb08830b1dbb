"""Who is let through when the clouds are nearly full, with trio's clock made to jump."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from attrs import define, field

from cuckoo_mount.cache.cloudroom import STALL_S, WAIT_MAX_S, CloudRoom
from cuckoo_mount.clouds.base import Space
from cuckoo_mount.errors import NoSpace
from cuckoo_mount.locks import Pulse

TOTAL = 1000


@define
class Clouds:
    """Clouds with room for `left` bytes, `unsent` of which are programs' already."""

    left: int = TOTAL
    unsent: int = 0
    is_full: bool = False
    changed: Pulse = field(factory=Pulse)
    room: CloudRoom = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.room = CloudRoom(lambda: Space(TOTAL, self.left), lambda: self.unsent, lambda: self.is_full, self.changed)

    async def write(self, size: int) -> None:
        """As `Content.write` does it."""
        if not self.room.fits(size):
            await self.room.admit(size)
        with self.room.promised(size):
            await trio.lowlevel.checkpoint()
            self.unsent += size

    def send(self, size: int, stored: int) -> None:
        """A pack of `size` plain bytes takes `stored` on the clouds."""
        self.unsent -= size
        self.left -= stored
        self.changed.beat()


async def test_what_fits_is_let_through_to_the_last_byte(autojump_clock: trio.testing.MockClock) -> None:
    clouds = Clouds()
    for size in (600, 300, 99, 1):
        await clouds.write(size)
    assert clouds.room.room() == Space(TOTAL, 0)
    before_s = trio.current_time()
    clouds.is_full = True
    with pytest.raises(NoSpace):
        await clouds.write(1)
    assert trio.current_time() == before_s, "there is nothing to wait for"


async def test_all_who_waited_do_not_take_the_same_room(autojump_clock: trio.testing.MockClock) -> None:
    clouds = Clouds(left=100, unsent=100)
    refused = 0

    async def write() -> None:
        nonlocal refused
        try:
            await clouds.write(40)
        except NoSpace:
            refused += 1

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        clouds.send(100, 0)
    assert refused == 8
    assert clouds.unsent == 80


async def test_what_turns_out_smaller_lets_writers_go_on(autojump_clock: trio.testing.MockClock) -> None:
    """Compressible bytes: three times what the clouds take is written, and no program is told anything."""
    clouds = Clouds()

    async def send_all() -> None:
        while True:
            await trio.sleep(STALL_S / 2)
            size = min(clouds.unsent, 200)
            clouds.send(size, size // 5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        for _ in range(30):
            await clouds.write(100)
        nursery.cancel_scope.cancel()


async def test_nobody_waits_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """Something moves all the time, but it makes no room: the first gets NoSpace in the end, the next ones at once."""
    clouds = Clouds(unsent=900)

    async def send_all() -> None:
        while True:
            await trio.sleep(STALL_S / 2)
            clouds.send(1, 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        with pytest.raises(NoSpace):
            await clouds.write(200)
        assert trio.current_time() == pytest.approx(WAIT_MAX_S)
        with pytest.raises(NoSpace):
            await clouds.write(150)
        assert trio.current_time() == pytest.approx(WAIT_MAX_S)
        await clouds.write(100)
        nursery.cancel_scope.cancel()


async def test_without_progress_the_wait_is_short(autojump_clock: trio.testing.MockClock) -> None:
    clouds = Clouds(unsent=900)
    with pytest.raises(NoSpace):
        await clouds.write(200)
    assert trio.current_time() == pytest.approx(STALL_S)


async def test_a_writer_waits_while_room_is_made(autojump_clock: trio.testing.MockClock) -> None:
    clouds = Clouds(left=0, is_full=True)
    asked = 0

    def may_free() -> bool:
        nonlocal asked
        asked += 1
        return asked == 1

    clouds.room.may_free = may_free
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clouds.write, 100)
        await trio.testing.wait_all_tasks_blocked()
        clouds.left = 100
        clouds.changed.beat()
    assert clouds.unsent == 100
    with pytest.raises(NoSpace):
        await clouds.write(1)


async def test_a_drive_without_clouds_has_no_limit_here() -> None:
    room = CloudRoom(lambda: None, lambda: 0, lambda: False, Pulse())
    assert room.fits(1 << 60)
    assert room.room() is None
