"""The clock for simulated days jumps over nothing but waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import trio

from cuckoo_mount.testing.workclock import WorkClock

DAY_S = 86_400.0


@pytest.fixture
def clock() -> Iterator[WorkClock]:
    made = WorkClock()
    with made.set():
        yield made


def test_a_day_of_waiting_takes_no_time(clock: WorkClock) -> None:
    began_s, began_day_s, began_ns = time.perf_counter(), time.time(), time.time_ns()
    trio.run(trio.sleep, DAY_S, clock=clock)
    assert time.perf_counter() - began_s < DAY_S / 2
    assert (clock.jumps, clock.ahead_s > DAY_S - 60) == (1, True)
    assert DAY_S <= time.time() - began_day_s < 2 * DAY_S
    assert DAY_S <= (time.time_ns() - began_ns) / 1e9 < 2 * DAY_S


def test_nothing_jumps_over_a_thread_that_works(clock: WorkClock) -> None:
    """trio's own autojump clock ends the hour before the thread."""
    may_end, ended = threading.Event(), []

    async def hour() -> None:
        await trio.sleep(3600)
        ended.append("hour")

    async def thread() -> None:
        assert await trio.to_thread.run_sync(may_end.wait, 60)
        ended.append("thread")

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hour)
            nursery.start_soon(thread)
            threading.Timer(0.05, may_end.set).start()

    trio.run(main, clock=clock)
    assert ended == ["thread", "hour"]


def test_nothing_jumps_over_what_is_watched(clock: WorkClock) -> None:
    left = [3]
    jumps = []

    async def main() -> None:
        clock.watch(lambda: left[0])
        while left[0]:
            await trio.sleep(0.01)
            jumps.append(clock.jumps)
            left[0] -= 1
        await trio.sleep(DAY_S)

    trio.run(main, clock=clock)
    assert jumps == [0, 0, 0]
    assert clock.jumps == 1


def test_the_time_of_day_is_put_right_again() -> None:
    clock, before = WorkClock(), (time.time, time.time_ns, time.monotonic, time.clock_gettime_ns)
    with clock.set():
        assert time.time is not before[0]
    assert (time.time, time.time_ns, time.monotonic, time.clock_gettime_ns) == before
