"""The time of day as the kernel stamps files with it, and how much time has passed whatever the clock says.

`now_ns` is used wherever a node gets a time.  With the write-back cache some stamps are the kernel's and some ours:
taken from two clocks, a later change could show the earlier time.  `later` brings such stamps in order.
The clock of a machine can be set, by a day or by years.  Where something is decided by age (is a writer dead, may an
object be deleted), `Moment` is used: it counts since the machine was booted, sleep included, and no one can set it.
Source: the kernel's fs/inode.c; clock_gettime(2).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from attrs import frozen

_CLOCK_REALTIME_COARSE: Final = 5
"""Linux's number; Python has no name for it.  It moves with the timer, every 1 to 10 ms."""
APART_NS: Final = 2 * 10**9
"""Stamps of two clocks of one machine are never so far apart: then the clock was set back in between."""
boot_id_file = Path("/proc/sys/kernel/random/boot_id")
"""What tells one boot of the machine from another; for tests, another file."""


def now_ns() -> int:
    """Return the time of day in nanoseconds since the epoch, up to 10 ms behind `time.time_ns()`, never ahead."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def later(before_ns: int | None, stamp_ns: int) -> int:
    """Return which of two stamps of one thing is to be shown: the later one, or the new one where the clock was set
    back since `before_ns`."""
    return stamp_ns if before_ns is None or before_ns - stamp_ns > APART_NS else max(before_ns, stamp_ns)


@frozen(slots=True)
class Moment:
    """A moment of this machine: a boot of it, and ns since then."""

    boot_id: str
    ns: int

    @classmethod
    def now(cls) -> Moment:
        """Return this moment."""
        boot_id = boot_id_file.read_text("ascii").strip() if boot_id_file.exists() else ""
        return cls(boot_id, time.clock_gettime_ns(time.CLOCK_BOOTTIME))

    def since_ns(self, before: Moment) -> int:
        """Return how long ago `before` was, at least: 0 where it was in another boot, or on another machine."""
        return max(0, self.ns - before.ns) if self.boot_id == before.boot_id != "" else 0
