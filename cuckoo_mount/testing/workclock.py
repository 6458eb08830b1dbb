"""A clock that jumps to the next deadline while nothing real is under way: a day in a minute, with real work in it.

trio's autojump clock takes a thread or a worker process at work for having nothing to do, and jumps past its deadline.
This one counts them.  While somebody waits for a thread, or a worker has a job, it runs as time does; else, as soon as
no task can go on, it is the time of the next deadline.  The time of day goes with it, so that what is kept for hours is
deleted after hours.
For one trio loop in the main thread.  Sound as long as everything real that a task may wait for is counted: threads
(`trio.to_thread`) always, what has a count of its own by `watch`.  What sockets bring from elsewhere is not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, ParamSpec, TypeVar
from unittest.mock import patch

import trio

P = ParamSpec("P")
T = TypeVar("T")
_NS: Final = 10**9


class WorkClock(trio.abc.Clock):
    """See the module: `trio.run(main, clock=clock)` inside `with clock.set():`."""

    def __init__(self) -> None:
        self._ahead_s = 0.0
        self._waiting = 0
        self._watched: list[Callable[[], int]] = []
        self.jumps = 0

    def watch(self, under_way: Callable[[], int]) -> None:
        """Do not jump while `under_way()` is more than 0."""
        self._watched.append(under_way)

    def counted(self, function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """Return a function that does the same, and while somebody waits for it the clock does not jump."""

        async def run(*args: P.args, **options: P.kwargs) -> T:
            self._waiting += 1
            try:
                return await function(*args, **options)
            finally:
                self._waiting -= 1

        return run

    @property
    def ahead_s(self) -> float:
        """By how much the clock is ahead of the real time since it was made."""
        return self._ahead_s

    @contextmanager
    def set(self) -> Iterator[None]:
        """Count threads, and let the time of day and `time.monotonic` go with the clock."""
        day_ns, coarse_ns, monotonic = time.time_ns, time.clock_gettime_ns, time.monotonic
        with (
            patch.object(trio.to_thread, "run_sync", self.counted(trio.to_thread.run_sync)),
            patch.object(time, "time_ns", lambda: day_ns() + round(self._ahead_s * _NS)),
            patch.object(time, "clock_gettime_ns", lambda which: coarse_ns(which) + round(self._ahead_s * _NS)),
            patch.object(time, "time", lambda: day_ns() / _NS + self._ahead_s),
            patch.object(time, "monotonic", lambda: monotonic() + self._ahead_s),
        ):
            yield

    # -- trio's --

    def start_clock(self) -> None:
        """Begin."""

    def current_time(self) -> float:
        """Return seconds since some moment."""
        return time.perf_counter() + self._ahead_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how long the loop is to sleep in real time: trio asks when no task can go on."""
        left_s = deadline - self.current_time()
        if left_s <= 0 or math.isinf(left_s) or self._waiting or any(count() for count in self._watched):
            return max(0.0, left_s)
        self._ahead_s += left_s
        self.jumps += 1
        return 0.0
