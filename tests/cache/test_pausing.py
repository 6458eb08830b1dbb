"""How long what is dirty rests before it is sent, by a clock that jumps."""

from __future__ import annotations

import trio
import trio.testing

from cuckoo_mount.cache.pausing import AGAIN_S, IDLE_MAX_S, IDLE_S, LITTLE_BYTES, SendPauses


async def sent_each_time(pauses: SendPauses, count: int, dirty_bytes: int, every_s: float) -> list[float]:
    """Return how long each of several changes rested."""
    found = []
    for _ in range(count):
        found.append(pauses.pause_s(dirty_bytes))
        pauses.note_sent(dirty_bytes)
        await trio.sleep(every_s)
    return found


async def test_little_that_comes_again_and_again_waits_longer(autojump_clock: trio.testing.MockClock) -> None:
    pauses = SendPauses()
    found = await sent_each_time(pauses, 7, 100, AGAIN_S / 2)
    assert found == [IDLE_S, 2 * IDLE_S, 4 * IDLE_S, 8 * IDLE_S, 16 * IDLE_S, IDLE_MAX_S, IDLE_MAX_S]
    await trio.sleep(AGAIN_S)
    assert pauses.pause_s(100) == IDLE_S, "after a while it is as quick as ever"
    assert await sent_each_time(pauses, 3, 100, AGAIN_S) == [IDLE_S] * 3


async def test_much_never_waits_longer(autojump_clock: trio.testing.MockClock) -> None:
    pauses = SendPauses()
    await sent_each_time(pauses, 5, 100, 1)
    assert await sent_each_time(pauses, 3, LITTLE_BYTES, 1) == [IDLE_S] * 3
    assert pauses.pause_s(100) == IDLE_S
